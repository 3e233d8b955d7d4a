"""Handlers of MindSpeed-LLM by name: what each writes of its records, derived by hand from texts written out in full."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.conversation import Conversation, Message, Role
from mindspeed_ift.data.encode import EncodeOptions
from mindspeed_ift.data.handlers import AUTO, HANDLERS
from mindspeed_ift.data.indexed import IndexedColumn, column_path
from mindspeed_ift.data.template_choice import get_template, make_encoder
from mindspeed_ift.data.tokenizer import Tokenizer
from mindspeed_ift.evaluation.records import make_items
from tests.preparing import column, contents, prepared, run, write

BEGIN = (
    "\nBelow is an instruction that describes a task, paired with an input that provides further context. Write a"
    " response that appropriately completes the request. Please note that you need to think through your response"
    " logically and step by step.\n"
)
TALK = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and"
    " polite answers to the user's questions.USER: Below is an instruction that describes a task. Write a response that"
    " appropriately completes the request.\n\n"
)
MOSS_CHAT = {
    "turn_1": {"Human": "<|Human|>: 你好<eoh>\n", "Inner Thoughts": "None", "MOSS": "<|MOSS|>: Hello.<eom>\n"},
    "turn_2": None,
    "turn_3": {"Human": "<|Human|>: and you? <eoh>\n", "MOSS": "<|MOSS|>: <think> well <eom>\n"},
}
NO_ANSWER = {"chat": {"turn_1": {"Human": "<|Human|>: q<eoh>\n"}}}
ONE_TURN = {"chat": {"turn_1": {"Human": "no marks", "MOSS": "none either"}}}

WRITTEN: dict[str, tuple[list[dict[str, Any]], list[tuple[str, str]], list[str]]] = {
    "GeneralInstructionHandler": (
        [
            {"instruction": "Add.", "input": "1, 2", "output": "3\n"},
            {"instruction": "你好", "input": "", "output": "\n\nHello"},
            {"instruction": "Say A.", "output": "A ### Response: is\nno mark"},
            {"instruction": "Null", "input": None, "output": ""},
            {"instruction": "q", "input": "", "output": None},
            {"instruction": "q", "input": 5, "output": "a"},
            {"input": "i", "output": "a"},
        ],
        [
            (BEGIN + "### Instruction:\nAdd.\n1, 2\n### Response:\n", "3\n\n"),
            (BEGIN + "### Instruction:\n你好\n\n### Response:\n", "\n\nHello\n"),
            (BEGIN + "### Instruction:\nSay A.\n\n### Response:\n", "A ### Response: is\nno mark\n"),
            (BEGIN + "### Instruction:\nNull\n\n### Response:\n", "\n"),
        ],
        ["'output' is missing or null", "'input' is not text", "'instruction' is missing or null"],
    ),
    "BelleMultiTurnInstructionHandler": (
        [
            {
                "instruction": "Human:你好\nAssistant: Hello! \nHuman: How are you?\nAssistant:\n",
                "input": "",
                "output": " Fine. ",
            },
            {"instruction": "Human: Explain Assistant: in a play\nAssistant:", "output": "A part."},
            {"instruction": "Human: no mark at the end", "output": "a"},
            {"instruction": "Human: a\nAssistant: Human: b\nAssistant:", "output": "c"},
            {"instruction": "no marks", "output": "a"},
            {"instruction": "Human: a Human: b\nAssistant:", "output": "c"},
            {"instruction": "Human: a\nAssistant:"},
        ],
        [
            (
                BEGIN
                + "### Instruction:\n你好\n### Response:\nHello!\n### Instruction:\nHow are you?\n### Response:\n",
                "Fine.\n",
            ),
            (BEGIN + "### Instruction:\nExplain Assistant: in a play\n### Response:\n", "A part.\n"),
            (BEGIN + "### Instruction:\nno mark at the end\n### Response:\n", "a\n"),
            (BEGIN + "### Instruction:\na\n### Response:\n\n### Instruction:\nb\n### Response:\n", "c\n"),
        ],
        [
            "'instruction' does not begin with 'Human:'",
            "a turn of 'instruction' has no 'Assistant:'",
            "'output' is missing or null",
        ],
    ),
    "LeetcodePythonInstructionHandler": (
        [
            {
                "code_with_problem": " Two sums. \n```python\nclass A: pass\n```\n",
                "code_only": "class A: pass",
                "explanation_only": "By hashing.",
                "answer": "not read",
            },
            {"code_with_problem": "No fence", "code_only": "pass", "explanation_only": None},
            {"code_with_problem": "No code", "explanation_only": "e"},
        ],
        [
            (BEGIN + "### Instruction:\nTwo sums.\n### Response:\n", "class A: pass\nBy hashing.\n"),
            (BEGIN + "### Instruction:\nNo fence\n### Response:\n", "pass\n\n"),
        ],
        ["'code_only' is missing or null"],
    ),
    "MOSSInstructionHandler": (
        [{"chat": MOSS_CHAT, "num_turns": 2}, ONE_TURN, NO_ANSWER, {"chat": []}, {"chat": {}}, {"chat": {"turn_1": 3}}],
        [
            (BEGIN + "### Instruction:\n你好\n### Response:\n", "Hello.\n"),
            (
                BEGIN + "### Instruction:\n你好\n### Response:\nHello.\n### Instruction:\nand you?\n### Response:\n",
                "<think> well\n",
            ),
            (BEGIN + "### Instruction:\nno marks\n### Response:\n", "none either\n"),
        ],
        [
            "'MOSS' is missing or null",
            "'chat' is not an object of turns",
            "no messages",
            "a turn of 'chat' is not an object",
        ],
    ),
}


@pytest.mark.parametrize("handler", WRITTEN)
def test_the_whole_text_is_encoded_and_the_last_answer_learnt(
    handler: str, config: PreprocessConfig, words: Tokenizer
) -> None:
    records, texts, reasons = WRITTEN[handler]
    summary = prepared(config, records, handler_name=handler)
    expected = []
    for prompt, answer in texts:
        ids, hidden = words.encode(prompt + answer), len(words.encode(prompt))
        expected.append((ids, [-100] * hidden + ids[hidden:]))
    columns = {name: column(config, name) for name in ("input_ids", "labels", "attention_mask")}
    found = [tuple(columns[name][row].tolist() for name in ("input_ids", "labels")) for row in range(len(expected))]
    assert found == expected
    assert {len(one) for one in columns.values()} == {len(expected)}
    assert all((columns["attention_mask"][row] == 1).all() for row in range(len(expected)))
    assert {name: tally.count for name, tally in summary.ledger.dropped.items()} == dict.fromkeys(reasons, 1)
    assert summary.manifest["prompt_type"].startswith("mindspeed_alpaca")
    ended = prepared(config, records, handler_name=handler, append_eod=True)
    assert ended.manifest["samples"] == len(expected)
    for row, (ids, labels) in enumerate(expected):
        assert column(config, "input_ids")[row].tolist() == [*ids, words.eod_id]
        assert column(config, "labels")[row].tolist() == [*labels, words.eod_id]


def test_marks_of_moss(config: PreprocessConfig, words: Tokenizer) -> None:
    records = [{"chat": MOSS_CHAT}, ONE_TURN, {"chat": json.dumps(ONE_TURN["chat"])}, NO_ANSWER]
    summary = prepared(config, records, handler_name="MOSSMultiTurnHandler")
    eos, hello, second = words.eod_id, words.encode("Hello."), words.encode("<think> well")
    first, asked = words.encode("你好"), words.encode("and you?")
    ids = [195, *first, 196, *hello, 195, *asked, 196, *second, eos]
    labels = [eos, *[-100] * len(first), -100, *hello, eos, *[-100] * len(asked), -100, *second, eos]
    assert column(config, "input_ids")[0].tolist() == ids
    assert column(config, "labels")[0].tolist() == labels
    one = [195, *words.encode("no marks"), 196, *words.encode("none either"), eos]
    assert column(config, "input_ids")[1].tolist() == column(config, "input_ids")[2].tolist() == one
    assert {name: tally.count for name, tally in summary.ledger.dropped.items()} == {"'MOSS' is missing or null": 1}
    assert any(
        line.startswith("MOSSMultiTurnHandler marks who speaks with the ids 195 and 196") for line in summary.notices
    )


TEXTS: dict[str, tuple[list[dict[str, Any]], list[str], dict[str, int]]] = {
    "AlpacaPretrainHandler": (
        [
            {"instruction": "Add.", "input": "1, 2", "output": "3"},
            {"instruction": "Hi", "input": "", "output": "Hello"},
            {"instruction": "你好", "output": "Hello"},
            {"instruction": None, "output": "Hello"},
        ],
        [
            TALK + "### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response: ASSISTANT: 3",
            TALK + "### Instruction:\nHi\n\n### Response: ASSISTANT: Hello",
            TALK + "### Instruction:\n你好\n\n### Response: ASSISTANT: Hello",
        ],
        {"'instruction' is missing or null": 1},
    ),
    "SharegptPretrainHandler": (
        [
            {"text": [{"from": "human", "value": "q "}, {"from": "gpt", "value": "a"}]},
            {"text": json.dumps([{"role": "user", "content": "你好"}])},
            {"text": []},
            {"text": [{"from": "human", "value": None}]},
            {"text": "plain"},
        ],
        ["q a", "你好"],
        {"the text is empty": 1, "a message has no text": 1, "'text' is not a list of messages": 1},
    ),
    "StackOverflowPythonPretrainHandler": (
        [
            {"title": "how to add", "question_body": "1, 2?", "answer_body": "use +"},
            {"title": "", "question_body": "你好?", "answer_body": "Hello"},
            {"title": "t", "question_body": "q", "answer_body": None},
        ],
        [
            "In python, how to add\n### Question:\n1, 2?\n### Response:\nuse +\n",
            "In python, \n### Question:\n你好?\n### Response:\nHello\n",
        ],
        {"'answer_body' is missing or null": 1},
    ),
}


@pytest.mark.parametrize("handler", TEXTS)
def test_texts_made_of_columns(handler: str, config: PreprocessConfig, words: Tokenizer) -> None:
    records, texts, dropped = TEXTS[handler]
    summary = prepared(config, records, handler_name=handler, append_eod=True)
    found = IndexedColumn(column_path(config.output_prefix, "text", packed_name=False))
    assert [found[row].tolist() for row in range(len(found))] == [[*words.encode(text), words.eod_id] for text in texts]
    assert {name: tally.count for name, tally in summary.ledger.dropped.items()} == dropped
    assert summary.manifest["columns"] == ["text"]
    with pytest.raises(UserError, match=f"plain text .{handler}. is cut into rows by the trainer"):
        run(replace(config, handler_name=handler, pack=True, seq_length=64))


def test_columns_of_texts_are_named_where_they_are_missing(config: PreprocessConfig) -> None:
    records = [{"conversations": [{"from": "human", "value": "q"}]}]
    with pytest.raises(UserError, match="no column 'text' in .*; name the right one with --json-keys"):
        prepared(config, records, handler_name="SharegptPretrainHandler")
    found = prepared(config, records, handler_name="SharegptPretrainHandler", json_keys=("conversations",))
    assert found.manifest["columns"] == ["conversations"]
    with pytest.raises(UserError, match="no column 'title' in .*; rename the one that is meant"):
        prepared(config, records, handler_name="StackOverflowPythonPretrainHandler")
    made = [{"instruction": "q", "output": "a"}]
    found = prepared(config, made, handler_name="AlpacaPretrainHandler", json_keys=("x",))
    assert "--json-keys changes nothing: AlpacaPretrainHandler makes one text of its columns" in found.notices


def test_too_long_samples_are_left_out_whole_or_cut_at_the_end(config: PreprocessConfig, words: Tokenizer) -> None:
    """As MindSpeed-LLM does: no turn is cut to the length; only --neat-pack keeps the beginning of what is longer."""
    records = [{"instruction": "q", "input": "", "output": "one two three " * count} for count in (1, 60, 2)]
    texts = [f"{BEGIN}### Instruction:\nq\n\n### Response:\n{one['output']}\n" for one in records]
    length = len(words.encode(texts[2])) + 1
    handler = {"handler_name": "GeneralInstructionHandler", "seq_length": length}
    summary = prepared(config, records, **handler)
    assert [len(column(config, "input_ids")[row]) for row in range(2)] == [
        len(words.encode(texts[0])),
        len(words.encode(texts[2])),
    ]
    assert (summary.ledger.kept, list(summary.ledger.dropped)) == (2, [f"{length} tokens or more (--seq-length)"])
    packed = prepared(config, records, **handler, pack=True, neat_pack=True)
    assert packed.ledger.kept == 3
    rows = [column(config, "input_ids")[row] for row in range(len(column(config, "input_ids")))]
    cut = words.encode(texts[1])[: length - 1]
    assert any(np.array_equal(row[: length - 1], cut) for row in rows)


def test_an_answer_that_is_too_long_does_not_take_the_others_with_it(
    config: PreprocessConfig, words: Tokenizer
) -> None:
    chat = {f"turn_{turn}": {"Human": "q", "MOSS": "one two three " * turn} for turn in range(1, 6)}
    records = [{"chat": chat}, ONE_TURN]
    whole = prepared(config, records, handler_name="MOSSInstructionHandler")
    lengths = [len(column(config, "input_ids")[row]) for row in range(6)]
    assert lengths[:5] == sorted(lengths[:5]) and whole.ledger.kept == 6
    summary = prepared(config, records, handler_name="MOSSInstructionHandler", seq_length=lengths[2] + 1)
    assert [len(column(config, "input_ids")[row]) for row in range(4)] == [*lengths[:3], lengths[5]]
    assert summary.ledger.noted["some of its answers were left out"].count == 1
    assert summary.ledger.noted["some of its answers were left out"].cut_tokens == sum(lengths[3:5])
    with pytest.raises(UserError, match="in.jsonl:1: .* tokens, more than the"):
        prepared(config, records, handler_name="MOSSInstructionHandler", seq_length=lengths[2] + 1, overlong="error")


def test_any_number_of_workers_gives_the_same(config: PreprocessConfig, tmp_path: Path) -> None:
    records = [{"chat": MOSS_CHAT}, ONE_TURN] * 600
    prepared(config, records, handler_name="MOSSInstructionHandler")
    before = contents(config)
    two = replace(
        config, workers=2, output_prefix=str(tmp_path / "two" / "data"), handler_name="MOSSInstructionHandler"
    )
    run(two)
    assert contents(two) == before


def test_the_prompt_is_the_handlers_own(config: PreprocessConfig) -> None:
    write(Path(config.input), [{"instruction": "q", "input": "", "output": "a"}])
    found = run(replace(config, handler_name="GeneralInstructionHandler", prompt_type="qwen3"))
    assert found.manifest["prompt_type"] == "mindspeed_alpaca"
    assert "--prompt-type qwen3 changes nothing: GeneralInstructionHandler writes a prompt of its own" in found.notices


def test_special_tokens_may_be_plain_text(config: PreprocessConfig, words: Tokenizer) -> None:
    records = [{"instruction": "q", "input": "", "output": "<|im_end|>"}]
    prepared(config, records, handler_name="GeneralInstructionHandler")
    end = words.token_id("<|im_end|>")
    assert end in column(config, "labels")[0]
    prepared(config, records, handler_name="GeneralInstructionHandler", escape_special_tokens=True)
    assert end not in column(config, "input_ids")[0]
    assert words.decode(column(config, "input_ids")[0]).endswith("### Response:\n<|im_end|>\n")


def test_a_model_is_asked_as_it_was_trained(words: Tokenizer) -> None:
    encoder = make_encoder(get_template("mindspeed_alpaca"), words, EncodeOptions())
    talk = (Message(Role.USER, "q"), Message(Role.ASSISTANT, "\n a"), Message(Role.USER, "r"))
    asked = words.encode(
        BEGIN + "### Instruction:\nq\n### Response:\n\n a\n### Instruction:\nr\n### Response:\n",
    )
    assert encoder.prompt_ids(talk) == asked
    assert words.decode(encoder.prompt_ids(talk[:1], system="be kind")).startswith("\nbe kind\n### Instruction:\nq\n")
    marked = make_encoder(get_template("mindspeed_moss"), words, EncodeOptions())
    assert marked.prompt_ids(talk[:1]) == [195, *words.encode("q"), 196]


def test_the_last_sample_of_a_record_is_the_one_that_is_evaluated(words: Tokenizer) -> None:
    talk = tuple(Message(role, text) for text in ("one", "two") for role in (Role.USER, Role.ASSISTANT))
    encoder = make_encoder(get_template("mindspeed_alpaca_each"), words, EncodeOptions())
    (item,), _ = make_items([("a.json:1", Conversation(talk))], encoder)
    assert item.sample.input_ids[: len(item.prompt)].tolist() == item.prompt


NAMES = {
    *("GeneralPretrainHandler", "AlpacaPretrainHandler", "SharegptPretrainHandler"),
    *("StackOverflowPythonPretrainHandler", "LlamaFactoryInstructionHandler", "AlpacaStyleInstructionHandler"),
    *("SharegptStyleInstructionHandler", "OpenAIInstructionHandler", "AlpacaStylePairwiseHandler"),
    *("SharegptStylePairwiseHandler", "GeneralInstructionHandler", "BelleMultiTurnInstructionHandler"),
    *("MOSSMultiTurnHandler", "MOSSInstructionHandler", "LeetcodePythonInstructionHandler"),
    *("PPOAlpacaStyleInstructionHandler", "R1AlpacaStyleInstructionHandler", "R1SharegptStyleInstructionHandler"),
    "HunyuanInstructionHandler",
}
"""The classes ...Handler of MindSpeed-LLM's data_handler.py, which are its names for --handler-name."""


def test_all_names_are_accepted() -> None:
    assert {*HANDLERS, *AUTO} == {*NAMES, "auto", "OpenAIStyleInstructionHandler"}
