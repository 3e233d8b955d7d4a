"""Turns and calls that make no conversation are refused with a reason."""

from __future__ import annotations

import pytest

from mindspeed_ift.data.conversation import (
    DropRecord,
    Message,
    Role,
    ToolCall,
    check_turns,
    parse_tool_calls,
    parse_tools,
)

USER, ANSWER = Message(Role.USER, "q"), Message(Role.ASSISTANT, "a")
RESULT, CALL = Message(Role.OBSERVATION, "r"), Message(Role.FUNCTION, "{}")


def test_turns() -> None:
    assert check_turns([USER, CALL, RESULT, ANSWER]) == (USER, CALL, RESULT, ANSWER)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no messages"),
        ([USER], "has no answer"),
        ([USER, USER], "do not alternate"),
        ([ANSWER, USER], "do not alternate"),
        ([USER, RESULT], "do not alternate"),
    ],
)
def test_turns_that_are_none(messages: list[Message], reason: str) -> None:
    with pytest.raises(DropRecord, match=reason):
        check_turns(messages)


def test_calls() -> None:
    assert parse_tool_calls('{"name": "f", "arguments": {"x": 1}}') == [ToolCall("f", {"x": 1})]
    assert len(parse_tool_calls('[{"name": "f", "arguments": {}}, {"name": "g", "arguments": 1}]')) == 2
    for text in ("x", '{"name": "f"}', '{"arguments": {}}', "3"):
        with pytest.raises(DropRecord):
            parse_tool_calls(text)


def test_tools() -> None:
    assert parse_tools('{"name": "f"}') == parse_tools('[{"name": "f"}]') == [{"name": "f"}]
    assert parse_tools("[]") == parse_tools("{}") == parse_tools('""') == [], "as LLaMA-Factory, empty is none"
    with pytest.raises(DropRecord, match="not JSON"):
        parse_tools("x")
