"""Records become conversations; what cannot is dropped with its reason, and wrong flags are named."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.column_formats import AlpacaFormat
from mindspeed_ift.data.conversation import Conversation, DropRecord, Message, PreferencePair, Role
from mindspeed_ift.data.formats import AutoFormat, make_format
from mindspeed_ift.data.message_formats import OpenAIFormat, SharegptFormat
from mindspeed_ift.data.template_table import TEMPLATES
from mindspeed_ift.data.text_formats import TextFormat

USER, ANSWER, RESULT, CALL = Role.USER, Role.ASSISTANT, Role.OBSERVATION, Role.FUNCTION


def turns(*pairs: tuple[Role, str]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in pairs)


def form(record: dict[str, Any], handler: str = "auto", **map_keys: Any) -> Any:
    return make_format(handler, map_keys, ("text",), [record], "data.json")


def test_alpaca_joins_prompt_and_input() -> None:
    record = {"instruction": "a", "input": "b", "output": "c"}
    assert form(record).convert(record) == Conversation(turns((USER, "a\nb"), (ANSWER, "c")))
    assert form(record).convert({**record, "input": None}).messages == turns((USER, "a"), (ANSWER, "c"))


def test_alpaca_with_response_history_system() -> None:
    record = {"instruction": "a", "response": "c", "history": [["x", "y"]], "system": "s"}
    expected = turns((USER, "x"), (ANSWER, "y"), (USER, "a"), (ANSWER, "c"))
    assert form(record).convert(record) == Conversation(expected, "s")
    unmapped = form(record, "AlpacaStyleInstructionHandler")
    assert unmapped.convert(record) == Conversation(turns((USER, "a"), (ANSWER, "c")))
    mapped = form(record, "AlpacaStyleInstructionHandler", history="history", system="system")
    assert mapped.convert(record) == Conversation(expected, "s")


def test_sharegpt_and_its_tags() -> None:
    record = {
        "conversations": [
            {"from": "system", "value": "s"},
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a"},
        ]
    }
    assert form(record).convert(record) == Conversation(turns((USER, "q"), (ANSWER, "a")), "s")
    record["conversations"][0]["value"] = None
    assert form(record).convert(record) == Conversation(turns((USER, "q"), (ANSWER, "a")))
    openai = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    mapped = form(openai, "SharegptStyleInstructionHandler", messages="messages", tags=tags)
    assert mapped.convert(openai) == Conversation(turns((USER, "q"), (ANSWER, "a")))
    assert form(openai).convert(openai) == Conversation(turns((USER, "q"), (ANSWER, "a")))


def test_openai_calls_thoughts_and_parallel_results() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    record = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": None, "tool_calls": [call, call], "reasoning_content": "hm"},
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "done"},
        ],
        "tools": [{"name": "f"}],
    }
    found = form(record).convert(record)
    assert found.messages[1] == Message(
        CALL, '<think>\nhm\n</think>\n\n[{"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": {"x": 1}}]'
    )
    assert found.messages[2] == Message(RESULT, "", ("1", "2"))
    assert found.tools == '[{"name": "f"}]'


def test_openai_parts() -> None:
    record = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "value": "q"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "reasoning", "value": "hm"},
                    {"type": "tool_call", "value": '{"name": "f", "arguments": {}}'},
                ],
            },
        ]
    }
    assert form(record).convert(record).messages == turns(
        (USER, "q"), (CALL, '<think>\nhm\n</think>\n\n[{"name": "f", "arguments": {}}]')
    )


@pytest.mark.parametrize(
    ("read", "record", "reason"),
    [
        (AlpacaFormat(), {"instruction": "a", "output": None}, "'output' is missing or null"),
        (AlpacaFormat(), {"instruction": 5, "output": "x"}, "'instruction' is not text"),
        (AlpacaFormat(history="h"), {"instruction": "a", "output": "x", "h": "y"}, "'h' is not a list of pairs"),
        (
            AlpacaFormat(history="h"),
            {"instruction": "a", "output": "x", "h": [["q", None]]},
            "a message of 'h' has no text",
        ),
        (SharegptFormat(), {"conversations": []}, "no messages"),
        (SharegptFormat(), {"conversations": "x"}, "not a list of messages"),
        (SharegptFormat(), {"conversations": [{"from": "human", "value": "q"}]}, "the last prompt has no answer"),
        (SharegptFormat(), {"conversations": [{"from": "gpt", "value": "q"}]}, "do not alternate"),
        (SharegptFormat(), {"conversations": [{"from": "me", "value": "q"}]}, "unknown or misplaced role 'me'"),
        (SharegptFormat(), {"conversations": [{"from": "human", "value": None}]}, "a message has no text"),
        (OpenAIFormat(), {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "more than text"),
    ],
)
def test_dropped_with_a_reason(read: Any, record: dict[str, Any], reason: str) -> None:
    with pytest.raises(DropRecord, match=reason):
        read.convert(record)


def test_text() -> None:
    assert form({"text": "a"}).convert({"text": "a"}) == ["a"]
    with pytest.raises(DropRecord, match="empty"):
        TextFormat().convert({"text": ""})


@pytest.mark.parametrize(
    ("handler", "keys", "message"),
    [
        ("AlpacaStyleInstructionHandlr", {}, "did you mean AlpacaStyleInstructionHandler"),
        ("AlpacaStyleInstructionHandler", {"promt": "x"}, "did you mean prompt"),
        ("AlpacaStyleInstructionHandler", {"prompt": "x"}, "no column 'x' in data.json .it has: instruction, output."),
        ("AlpacaStyleInstructionHandler", {"prompt": 3}, "must name a column"),
        ("SharegptStyleInstructionHandler", {}, "no column 'conversations'"),
        ("SharegptStyleInstructionHandler", {"tags": {"x": "y"}}, "'tags' must be an object"),
        ("GeneralPretrainHandler", {}, "no column 'text'"),
    ],
)
def test_wrong_flags_are_named(handler: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        form({"instruction": "a", "output": "b"}, handler, **keys)


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        ("AlpacaStyleProcessRewardHandler", "is not supported: its labels are process rewards"),
        ("SharegptStylePairwiseHandlr", "did you mean SharegptStylePairwiseHandler"),
    ],
)
def test_handlers_of_other_tasks_are_refused_by_name(handler: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        form({"instruction": "a", "output": "b"}, handler)


def test_every_record_is_recognized_by_itself() -> None:
    records = [
        {"instruction": "q", "input": "", "output": "a"},
        {"question": "q", "answer": "a", "n": 1},
        {"conversations": [{"from": "user", "value": "q"}, {"from": "model", "value": "a"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": None},
        {"nothing": "known"},
    ]
    found = make_format("auto", {}, ("text",), records, "a.jsonl")
    assert isinstance(found, AutoFormat) and found.seen == (
        "first 5 records of a.jsonl: 2 Alpaca (answer, input, instruction, output, question), 1 ShareGPT"
        " (conversations), 1 OpenAI (messages, tools), 1 of no known form"
    )
    expected = Conversation(turns((USER, "q"), (ANSWER, "a")))
    assert [found.convert(record) for record in records[:4]] == [expected] * 4
    with pytest.raises(DropRecord, match="of no known form .columns: nothing."):
        found.convert(records[4])
    assert make_format("LlamaFactoryInstructionHandler", {}, ("text",), records, "a.jsonl") == found
    assert pickle.loads(pickle.dumps(found)) == found


def test_pairs_and_answers_are_not_mixed() -> None:
    pair, single = {"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "response": "a"}
    with pytest.raises(UserError, match="of several kinds: Alpaca pairs, and record 2 Alpaca; part them"):
        make_format("auto", {}, ("text",), [pair, single], "a.jsonl")
    with pytest.raises(DropRecord, match="of another form than the first records: Alpaca pairs"):
        form(single).convert(pair)


def test_mapped_columns_are_used_by_auto() -> None:
    record = {"q": "ask", "ctx": "more", "a": "say", "hist": [["x", "y"]]}
    found = form(record, prompt="q", query="ctx", response="a", history="hist")
    assert found.convert(record).messages == turns((USER, "x"), (ANSWER, "y"), (USER, "ask\nmore"), (ANSWER, "say"))
    assert found.columns() == {"q", "ctx", "a", "hist"}
    assert form(record, prompt="q", query="", response="a").convert(record).messages == turns(
        (USER, "ask"), (ANSWER, "say")
    )
    with pytest.raises(UserError, match="no column 'z' in data.json"):
        form(record, prompt="z", response="a")
    with pytest.raises(UserError, match="'promt' is no key of any format; did you mean prompt"):
        form(record, promt="q")
    with pytest.raises(UserError, match="'response' must name a column, not null"):
        form(record, prompt="q", response=None)


QUESTION = {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}]}
GOOD, BAD = {"from": "gpt", "value": "good"}, {"from": "gpt", "value": "bad"}
PAIRS = [
    ({"instruction": "q", "system": "s", "chosen": "good", "rejected": "bad"}, {}),
    (
        {"question": "q", "system": "s", "best": "good", "worst": "bad"},
        {"prompt": "question", "chosen": "best", "rejected": "worst"},
    ),
    ({"instruction": "q", "system": "s", "output": ["good", "bad"]}, {"chosen": "output", "rejected": "output"}),
    ({**QUESTION, "chosen": GOOD, "rejected": BAD}, {}),
    ({**QUESTION, "chosen": "good", "rejected": "bad"}, {}),
    ({"chosen": [*QUESTION["conversations"], GOOD], "rejected": [*QUESTION["conversations"], BAD], "prompt": "q"}, {}),
    (
        {
            "messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "q"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        },
        {},
    ),
]


@pytest.mark.parametrize(("record", "keys"), PAIRS)
def test_pairs(record: dict[str, Any], keys: dict[str, str]) -> None:
    expected = PreferencePair(*(Conversation(turns((USER, "q"), (ANSWER, one)), "s") for one in ("good", "bad")))
    assert form(record, **keys).convert(record) == expected


def test_pairs_by_name_of_the_handler() -> None:
    expected = PreferencePair(*(Conversation(turns((USER, "q"), (ANSWER, one))) for one in ("good", "bad")))
    record = {"instruction": "q", "system": "s", "chosen": "good", "rejected": "bad"}
    found = form(record, "AlpacaStylePairwiseHandler")
    assert found.convert(record) == expected and found.columns() == {"instruction", "input", "chosen", "rejected"}
    record = {"conversations": QUESTION["conversations"][1:], "system": "s", "chosen": GOOD, "rejected": BAD}
    assert form(record, "SharegptStylePairwiseHandler").convert(record) == expected
    with pytest.raises(UserError, match="no column 'rejected'"):
        form({"instruction": "q", "chosen": "a"}, "AlpacaStylePairwiseHandler")


def test_pairs_without_a_common_prompt_are_dropped() -> None:
    record = {"chosen": [{"from": "human", "value": "q"}, GOOD], "rejected": [{"from": "human", "value": "other"}, BAD]}
    with pytest.raises(DropRecord, match="'chosen' and 'rejected' do not answer the same prompt"):
        form(record).convert(record)


def test_openai_text_in_front_of_a_call() -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": {"x": 1}}}
    message = {"role": "assistant", "content": "Let me look.", "tool_calls": [call], "reasoning_content": "hm"}
    record = {"messages": [{"role": "user", "content": "q"}, message]}
    found = form(record).convert(record)
    assert found.messages[1].content == (
        '<think>\nhm\n</think>\n\nLet me look.\n<tool_call>[{"name": "f", "arguments": {"x": 1}}]</tool_call>'
    )
    calls = TEMPLATES["qwen3"].split_call(found.messages[1].content)
    assert calls == ("<think>\nhm\n</think>\n\nLet me look.\n", '[{"name": "f", "arguments": {"x": 1}}]')


def test_lists_within_text_are_lists() -> None:
    """As csv holds them, and parquet files whose messages have no common schema."""
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    record: dict[str, Any] = {"messages": json.dumps(talk)}
    assert form(record).convert(record).messages == turns((USER, "q"), (ANSWER, "a"))
    record = {"conversations": json.dumps(talk)}
    assert form(record).convert(record).messages == turns((USER, "q"), (ANSWER, "a"))
    record = {"instruction": "q", "output": "a", "history": '[["x", "y"]]'}
    assert form(record).convert(record).messages == turns((USER, "x"), (ANSWER, "y"), (USER, "q"), (ANSWER, "a"))
    record = {"instruction": "[1]", "output": "[a", "history": "[]"}
    assert form(record).convert(record).messages == turns((USER, "[1]"), (ANSWER, "[a"))
    calls = json.dumps([{"function": {"name": "f", "arguments": "{}"}}])
    record = {"messages": [talk[0], {"role": "assistant", "content": None, "tool_calls": calls}]}
    assert form(record).convert(record).messages[1] == Message(CALL, '[{"name": "f", "arguments": {}}]')
    record = {"messages": json.dumps(talk[:1]), "chosen": json.dumps(talk[1:]), "rejected": "b"}
    assert form(record).convert(record).chosen.messages == turns((USER, "q"), (ANSWER, "a"))
    record["chosen"] = "[1, 2]"
    assert form(record).convert(record).chosen.messages == turns((USER, "q"), (ANSWER, "[1, 2]"))


def test_openai_results_name_their_call() -> None:
    def record(answered: str) -> dict[str, Any]:
        return {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "function": {"name": "f"}}]},
                {"role": "tool", "tool_call_id": answered, "content": "1"},
                {"role": "assistant", "content": "done"},
            ]
        }

    assert form(record("a")).convert(record("a")).messages[1] == Message(CALL, '[{"name": "f", "arguments": {}}]')
    with pytest.raises(DropRecord, match="a result answers a call that was not made"):
        form(record("b")).convert(record("b"))


@pytest.mark.parametrize(
    ("said", "weight"),
    [
        ({}, None),
        ({"loss": None}, None),
        ({"loss": False}, 0.0),
        ({"loss": True}, 1.0),
        ({"weight": 0.5}, 0.5),
        ({"loss_weight": 2}, 2.0),
        ({"loss": False, "weight": 3}, 0.0),
    ],
)
def test_a_message_says_what_it_weighs(said: dict[str, Any], weight: float | None) -> None:
    openai = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **said}]}
    sharegpt = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", **said}]}
    for record in (openai, sharegpt):
        assert form(record).convert(record).messages[1] == Message(ANSWER, "a", weight=weight)


@pytest.mark.parametrize(
    "said", [{"loss": "no"}, {"weight": -1}, {"weight": float("nan")}, {"loss": float("inf")}, {"loss": [1]}]
)
def test_a_weight_that_is_none_is_dropped(said: dict[str, Any]) -> None:
    record = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **said}]}
    with pytest.raises(DropRecord, match="loss or weight of a message is neither"):
        form(record).convert(record)


ODD = [None, 0, 1.5, True, "", "\ud800", [], [None], {}, {"a": None}, [[]], [{"role": None}], b"x"]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_odd_values_are_reasons_and_no_crashes(odd: Any) -> None:
    whole = {
        "instruction": "q",
        "input": "i",
        "output": "a",
        "history": [["x", "y"]],
        "system": "s",
        "tools": "[]",
        "chosen": "c",
        "rejected": "r",
        "text": "t",
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "loss": True}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "r"},
            {"role": "assistant", "content": "a", "reasoning_content": "hm"},
        ],
    }
    for broken in variants(whole, odd):
        for handler, keys in HANDLED.items():
            form = make_format(handler, {key: key for key in keys}, ("text",), [whole], "a.jsonl")
            with contextlib.suppress(DropRecord):
                assert "\ud800" not in repr(form.convert(broken)).replace("\\ud800", "\ud800")


HANDLED = {
    "auto": (),
    "AlpacaStyleInstructionHandler": ("history", "system", "tools"),
    "AlpacaStylePairwiseHandler": ("history", "system", "tools"),
    "SharegptStyleInstructionHandler": ("system", "tools"),
    "SharegptStylePairwiseHandler": ("system", "tools"),
    "OpenAIInstructionHandler": ("system", "tools"),
    "GeneralPretrainHandler": (),
}


def variants(value: Any, odd: Any) -> Iterator[Any]:
    """The value with each part of it, however deep, replaced in turn; and without it."""
    if isinstance(value, dict | list):
        for place in value if isinstance(value, dict) else range(len(value)):
            copy = value.copy()
            for other in [odd, *variants(value[place], odd)]:
                copy[place] = other
                yield copy
            del copy[place]
            yield copy


def test_unknown_records_are_named() -> None:
    with pytest.raises(UserError, match="of no known form .columns: x."):
        form({"x": 1})
