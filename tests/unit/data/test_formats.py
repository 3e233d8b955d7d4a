"""Records become conversations; what cannot is dropped with its reason, and wrong flags are named."""

from __future__ import annotations

from typing import Any

import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.conversation import Conversation, DropRecord, Message, Role
from mindspeed_ift.data.formats import AlpacaFormat, OpenAIFormat, SharegptFormat, TextFormat, make_format

USER, ANSWER, RESULT, CALL = Role.USER, Role.ASSISTANT, Role.OBSERVATION, Role.FUNCTION


def turns(*pairs: tuple[Role, str]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in pairs)


def form(record: dict[str, Any], handler: str = "auto", **map_keys: Any) -> Any:
    return make_format(handler, map_keys, ("text",), record, "data.json")


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
    openai = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    mapped = form(openai, "SharegptStyleInstructionHandler", messages="messages", tags=tags)
    assert mapped.convert(openai) == Conversation(turns((USER, "q"), (ANSWER, "a")))
    assert isinstance(form(openai), OpenAIFormat)


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
    assert form({"text": "a"}).texts({"text": "a"}) == ["a"]
    with pytest.raises(DropRecord, match="empty"):
        TextFormat().texts({"text": ""})


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


def test_unknown_records_are_named() -> None:
    with pytest.raises(UserError, match="of no known form .columns: x."):
        form({"x": 1})
