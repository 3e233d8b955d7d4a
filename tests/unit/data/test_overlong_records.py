"""What becomes of conversations longer than the length asked for, by --overlong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data import workers
from mindspeed_ift.data.conversation import Conversation, DropRecord, Message, Role
from mindspeed_ift.data.cutting import split_at_questions
from mindspeed_ift.data.encode import CUT_NOTE, SPLIT_NOTE, Encoded, EncodeOptions, Encoder, StopRun
from mindspeed_ift.data.encode_texts import pieces_of
from mindspeed_ift.data.indexed import IndexedColumn, column_path
from mindspeed_ift.data.ledger import Ledger
from mindspeed_ift.data.preprocess import preprocess
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample
from mindspeed_ift.data.template_choice import get_template, make_encoder
from mindspeed_ift.data.template_table import TEMPLATES
from mindspeed_ift.data.tokenizer import Tokenizer, load_tokenizer
from tests.tiny_tokenizer import make_tiny_tokenizer

TEMPLATE_NAMES = ["qwen", "qwen3", "qwen_lf", "llama2", "glm4", "empty"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(make_tiny_tokenizer(tmp_path_factory.mktemp("tiny")))


def talk(turns: int, seed: int = 0, longest: int = 12, system: str = "be brief") -> Conversation:
    """Turn by turn ``q3 word word`` and ``a3 word``."""
    generator = np.random.default_rng(seed)
    messages = []
    for turn in range(turns):
        question, answer = (" word" * int(generator.integers(0, longest)) for _ in "qa")
        messages += [Message(Role.USER, f"q{turn}{question}"), Message(Role.ASSISTANT, f"a{turn}{answer}")]
    return Conversation(tuple(messages), system)


def encoder(tokenizer: Tokenizer, template: str, **options: Any) -> Encoder:
    return make_encoder(get_template(template), tokenizer, EncodeOptions(**options))


def encode(tokenizer: Tokenizer, conversation: Conversation, template: str = "qwen3", **options: Any) -> Any:
    return encoder(tokenizer, template, **options).encode([conversation])[0]


def learnt(tokenizer: Tokenizer, sample: Sample) -> str:
    return tokenizer.decode(sample.labels[sample.labels != IGNORED_LABEL])


@pytest.mark.parametrize("overlong", ["truncate", "drop", "split", "error"])
@pytest.mark.parametrize("template", TEMPLATE_NAMES)
def test_what_fits_stays_as_it_is(tokenizer: Tokenizer, template: str, overlong: str) -> None:
    plain = encode(tokenizer, talk(3), template)
    fitting = encode(tokenizer, talk(3), template, overlong=overlong, room=len(plain.sample))
    np.testing.assert_array_equal(fitting.sample.input_ids, plain.sample.input_ids)
    np.testing.assert_array_equal(fitting.sample.labels, plain.sample.labels)
    assert fitting.notes == () and fitting.rest == () and fitting.cut_tokens == 0
    longer = encode(tokenizer, talk(3), template, overlong=overlong, room=len(plain.sample) - 1)
    assert isinstance(longer, DropRecord) or longer.notes


@pytest.mark.parametrize("append_eod", [False, True])
@pytest.mark.parametrize("template", TEMPLATE_NAMES)
def test_truncate_fills_the_room_and_keeps_the_end(tokenizer: Tokenizer, template: str, append_eod: bool) -> None:
    whole = encode(tokenizer, talk(3), template, append_eod=append_eod)
    for room in range(8, len(whole.sample), 5):
        cut = encode(tokenizer, talk(3), template, append_eod=append_eod, overlong="truncate", room=room)
        assert len(cut.sample) <= room and cut.notes[0] == CUT_NOTE
        assert cut.cut_tokens == len(whole.sample) - len(cut.sample)
        if append_eod:
            assert cut.sample.input_ids[-1] == cut.sample.labels[-1] == whole.sample.input_ids[-1]


@pytest.mark.parametrize(("template", "room"), [("qwen", 60), ("qwen3", 60)])
def test_truncate_is_the_cutting_of_llama_factory(tokenizer: Tokenizer, template: str, room: int) -> None:
    reference = encode(tokenizer, talk(6), template, cutoff=room)
    cut = encode(tokenizer, talk(6), template, overlong="truncate", room=room)
    np.testing.assert_array_equal(cut.sample.input_ids, reference.sample.input_ids)


def test_drop(tokenizer: Tokenizer) -> None:
    whole = len(encode(tokenizer, talk(3)).sample)
    dropped = encode(tokenizer, talk(3), overlong="drop", room=20)
    assert str(dropped) == "more than 20 tokens (--overlong drop)" and dropped.cut_tokens == whole
    assert not dropped.malformed and not isinstance(dropped, StopRun)


def test_error(tokenizer: Tokenizer) -> None:
    whole = len(encode(tokenizer, talk(3)).sample)
    stop = encode(tokenizer, talk(3), overlong="error", room=20)
    assert isinstance(stop, StopRun) and f"{whole} tokens, more than the 20 that fit" in str(stop)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("template", TEMPLATE_NAMES)
def test_split_loses_nothing(tokenizer: Tokenizer, template: str, seed: int) -> None:
    """Every sample fits and begins with the system prompt; all turns are there, once, in order, as they would be
    in a conversation of their own; and no sample could have held the first turn of the next one too."""
    conversation, room = talk(9, seed), 200
    found = encode(tokenizer, conversation, template, overlong="split", room=room)
    assert isinstance(found, Encoded) and found.notes == (SPLIT_NOTE,) and found.cut_tokens == 0
    messages, place = conversation.messages, 0
    for number, sample in enumerate(found.samples):
        assert len(sample) <= room
        stop = next(
            stop
            for stop in range(place + 2, len(messages) + 1, 2)
            if tokenizer.decode(sample.input_ids).count("q") == (stop - place) // 2
        )
        alone = encode(tokenizer, Conversation(messages[place:stop], conversation.system), template)
        np.testing.assert_array_equal(sample.input_ids, alone.sample.input_ids)
        np.testing.assert_array_equal(sample.labels, alone.sample.labels)
        if number < len(found.rest):
            more = encode(tokenizer, Conversation(messages[place : stop + 2], conversation.system), template)
            assert len(more.sample) > room
        place = stop
    assert place == len(messages)


def test_a_turn_that_does_not_fit_alone_is_cut(tokenizer: Tokenizer) -> None:
    long = Message(Role.ASSISTANT, "a1" + " word" * 80)
    messages = (*talk(1, 1, 5).messages, Message(Role.USER, "q1"), long, *talk(1, 2, 5).messages)
    found = encode(tokenizer, Conversation(messages, "be brief"), overlong="split", room=80)
    assert found.notes == (CUT_NOTE, SPLIT_NOTE) and len(found.samples) == 3
    alone = encode(tokenizer, Conversation(messages[2:4], "be brief"))
    assert found.cut_tokens == len(alone.sample) - len(found.samples[1]) > 0
    assert all("be brief" in tokenizer.decode(sample.input_ids) for sample in found.samples)
    single = encode(tokenizer, Conversation(messages[2:4], "be brief"), overlong="split", room=80)
    assert single.notes == (CUT_NOTE,) and single.rest == () and len(single.sample) == 80


def test_a_tools_result_stays_with_its_call(tokenizer: Tokenizer) -> None:
    call = Message(Role.FUNCTION, '{"name": "look", "arguments": {"at": "it"}}')
    exchange = (Message(Role.USER, "q"), call, Message(Role.OBSERVATION, "seen"), Message(Role.ASSISTANT, "a"))
    conversation = Conversation(exchange * 3, "be brief", '[{"name": "look"}]')
    whole = encode(tokenizer, conversation)
    found = encode(tokenizer, conversation, overlong="split", room=len(whole.sample) - 1)
    assert [tokenizer.decode(sample.input_ids).count("seen") for sample in found.samples] == [2, 1]
    assert all("look" in tokenizer.decode(sample.input_ids).split("user\n")[0] for sample in found.samples)
    small = encode(tokenizer, conversation, overlong="split", room=len(found.samples[1]) - 1)
    assert len(small.samples) == 3 and small.notes[0] == CUT_NOTE


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("known", [True, False])
def test_splits_are_greedy(seed: int, known: bool) -> None:
    generator = np.random.default_rng(seed)
    turns, overhead, room = int(generator.integers(1, 12)), 3, 20
    sizes = generator.integers(1, 12, turns).tolist()
    conversation = talk(turns)
    of = {message.content: size for message, size in zip(conversation.messages[::2], sizes)}

    def size(part: Conversation) -> int:
        return overhead + sum(of[message.content] for message in part.messages[::2])

    whole = [sizes[0] + overhead, *sizes[1:]] if known else []
    parts = split_at_questions(conversation, whole, room, lambda part: size(part) <= room)
    assert [m for part in parts for m in part.messages] == list(conversation.messages)
    for part, following in zip(parts, [*parts[1:], None]):
        assert size(part) <= room or len(part.messages) == 2
        if following is not None:
            assert size(part) + of[following.messages[0].content] > room


def test_pieces_of_text() -> None:
    ids = np.arange(5)
    for split, room, expected in ((False, 2, [[0, 1]]), (True, 2, [[0, 1], [2, 3], [4]]), (True, 5, [[0, 1, 2, 3, 4]])):
        assert [piece.tolist() for piece in pieces_of(ids, split, room)] == expected


def test_every_template_splits(tokenizer: Tokenizer) -> None:
    for name in TEMPLATES:
        found = encode(tokenizer, talk(6), name, overlong="split", room=150)
        assert isinstance(found, Encoded) and all(len(sample) <= 150 for sample in found.samples), name


def test_the_tokenizers_own_template(tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="chat templates need jinja2")
    folder = make_tiny_tokenizer(tmp_path)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    own = load_tokenizer(folder)
    found = encode(own, talk(9), "hf", overlong="split", room=140)
    assert len(found.samples) > 2 and all(len(sample) <= 140 for sample in found.samples)
    assert "".join(learnt(own, sample) for sample in found.samples) == learnt(own, encode(own, talk(9), "hf").sample)


# The whole pipeline


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreprocessConfig:
    monkeypatch.setattr(workers, "CHUNK", 3)
    conversations = [talk(turns, turns) for turns in (1, 8, 2, 9, 1)]
    system = {"role": "system", "content": "be brief"}
    records = [{"messages": [system, *map(vars, one.messages)]} for one in conversations]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return PreprocessConfig(
        input=(str(tmp_path / "in.jsonl"),),
        output_prefix=str(tmp_path / "out" / "data"),
        tokenizer_name_or_path=str(make_tiny_tokenizer(tmp_path / "tokenizer")),
        prompt_type="qwen3",
        seq_length=300,
    )


def prepare(config: PreprocessConfig, **change: Any) -> tuple[Ledger, list[int]]:
    """The account, and the lengths of what was written."""
    summary = preprocess(replace(config, **change), report=lambda line: None)
    name = summary.manifest["columns"][0]
    column = IndexedColumn(column_path(config.output_prefix, name, packed_name=name != "text"))
    return summary.ledger, column.lengths.tolist()


def test_the_account_of_each_way(config: PreprocessConfig) -> None:
    whole, lengths = prepare(config, seq_length=None)
    assert [length > 299 for length in lengths] == [False, True, False, True, False]
    ledger, lengths = prepare(config, overlong="truncate")
    assert ledger.kept == 5 and lengths[1] == lengths[3] == 299
    assert ledger.noted[CUT_NOTE].count == 2 and ledger.noted[CUT_NOTE].cut_tokens == whole.tokens - ledger.tokens
    ledger, lengths = prepare(config, overlong="drop")
    assert ledger.kept == len(lengths) == 3 and ledger.malformed == 0
    assert ledger.dropped["more than 299 tokens (--overlong drop)"].count == 2
    ledger, lengths = prepare(config, overlong="split", workers=2)
    assert ledger.kept == len(lengths) > 7 and max(lengths) <= 299 and ledger.noted[SPLIT_NOTE].count == 2
    assert ledger.learnt_tokens == whole.learnt_tokens and ledger.tokens > whole.tokens
    rows = parquet.read_table(f"{config.output_prefix}.ledger.parquet").to_pylist()
    assert [row["outcome"] for row in rows] == ["kept", "split", "kept", "split", "kept"]
    assert [row["samples"] for row in rows][::2] == [1, 1, 1] and sum(row["samples"] for row in rows) == len(lengths)


def test_the_shorter_of_both_lengths_counts(config: PreprocessConfig) -> None:
    assert max(prepare(config, overlong="truncate", cutoff_len=120)[1]) == 120
    assert max(prepare(config, overlong="truncate", cutoff_len=120, seq_length=None)[1]) == 120
    assert max(prepare(config, overlong="truncate", cutoff_len=1000)[1]) == 299


@pytest.mark.parametrize("count", [1, 2])
def test_the_record_that_stops_the_run_is_named(config: PreprocessConfig, count: int) -> None:
    with pytest.raises(UserError, match=r"in.jsonl:2: \d+ tokens, more than the 299 that fit; give a larger"):
        prepare(config, overlong="error", workers=count)
    assert not list(Path(config.output_prefix).parent.iterdir())


@pytest.mark.parametrize("neat_pack", [False, True])
def test_packed_rows_hold_what_was_split(config: PreprocessConfig, neat_pack: bool) -> None:
    ledger, lengths = prepare(config, overlong="split", pack=True, neat_pack=neat_pack)
    assert ledger.kept > 7 and set(lengths) == {300}


def test_plain_text(config: PreprocessConfig, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "word " * 100}) + "\n" + '{"text": "word"}\n')
    text = replace(
        config, input=(str(tmp_path / "text.jsonl"),), handler_name="GeneralPretrainHandler", append_eod=True
    )
    whole, (length, short) = prepare(text, seq_length=None)
    assert prepare(text, seq_length=51, overlong="truncate")[1] == [50, short]
    ledger, lengths = prepare(text, seq_length=51, overlong="split")
    assert lengths == [50] * (length // 50) + [length % 50] * (length % 50 > 0) + [short]
    assert ledger.tokens == whole.tokens and ledger.noted[SPLIT_NOTE].count == 1
    assert prepare(text, seq_length=51, overlong="drop")[1] == [short]
    with pytest.raises(UserError, match="text.jsonl:1: .* tokens, more than the 50 that fit"):
        prepare(text, seq_length=51, overlong="error")
