"""The demo records teach something of every kind, in both languages, and all of them can be converted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mindspeed_ift.data.conversation import Conversation, Role, parse_tool_calls, parse_tools
from mindspeed_ift.data.formats import AutoFormat, make_format

DEMO = Path(__file__).resolve().parents[3] / "examples/data/demo.jsonl"
QUICKSTART_PROMPTS = ("What is 7 times 8?", "中国的首都是哪里？", "What is a pack?")
THOUGHT = re.compile(r"<think>\n[^\n]+\n</think>\n\n\S")


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in DEMO.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def conversations(records: list[dict[str, Any]]) -> list[Conversation]:
    """As ``--handler-name auto`` reads them."""
    form = make_format("auto", {}, ("text",), records[:100], DEMO.name)
    assert isinstance(form, AutoFormat) and "100 ShareGPT (conversations, system, tools)" in form.seen
    return [form.convert(record) for record in records]


def _is_chinese(text: str) -> bool:
    return len(re.findall(r"[\u4e00-\u9fff]", text)) > len(re.findall(r"[A-Za-z']+", text))


def test_size_and_languages(records: list[dict[str, Any]]) -> None:
    assert 190 <= len(records) <= 210
    chinese = sum(_is_chinese(record["conversations"][0]["value"]) for record in records)
    assert min(chinese, len(records) - chinese) >= 0.35 * len(records)


def test_every_kind_is_there(conversations: list[Conversation]) -> None:
    roles = [[message.role for message in conversation.messages] for conversation in conversations]
    assert sum(kinds.count(Role.USER) >= 2 for kinds in roles) >= 20
    assert sum(bool(conversation.system) for conversation in conversations) >= 15
    assert sum({Role.FUNCTION, Role.OBSERVATION} <= set(kinds) for kinds in roles) >= 15
    assert sum(any("<think>" in message.content for message in one.messages) for one in conversations) >= 15


def test_first_prompts_are_unique(conversations: list[Conversation]) -> None:
    """Learnt by heart, a prompt has one answer; those of the quickstart stand alone."""
    prompts = [(conversation.system, conversation.messages[0].content) for conversation in conversations]
    assert len(set(prompts)) == len(prompts)
    assert all([prompt for _, prompt in prompts].count(asked) == 1 for asked in QUICKSTART_PROMPTS)


def test_texts_are_whole(conversations: list[Conversation]) -> None:
    """No empty or padded message; a thought is one line, closed, and followed by an answer."""
    for message in (message for conversation in conversations for message in conversation.messages):
        assert message.content and message.content == message.content.strip(), message
        if "think>" in message.content:
            assert message.role is Role.ASSISTANT and THOUGHT.match(message.content), message
            assert message.content.count("think>") == 2, message


def test_calls_fit_their_tools(conversations: list[Conversation]) -> None:
    """A conversation with tools calls them, by name and with all that is required; results are JSON."""
    for conversation in conversations:
        calls = [message for message in conversation.messages if message.role is Role.FUNCTION]
        assert bool(calls) == bool(conversation.tools), conversation
        parameters = {tool["name"]: tool["parameters"] for tool in parse_tools(conversation.tools or "[]")}
        for call in (call for message in calls for call in parse_tool_calls(message.content)):
            assert set(call.arguments) == set(parameters[call.name]["properties"]), call
            assert set(parameters[call.name]["required"]) <= set(call.arguments), call
        for message in conversation.messages:
            assert message.role is not Role.OBSERVATION or json.loads(message.content) is not None


def test_held_out_records_are_of_the_same_kind_and_not_among_the_learnt(conversations: list[Conversation]) -> None:
    lines = (DEMO.parent / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    form = make_format("auto", {}, ("text",), list(map(json.loads, lines)), "heldout.jsonl")
    held_out = [form.convert(json.loads(line)) for line in lines]
    prompts = [conversation.messages[0].content for conversation in held_out]
    assert len(set(prompts)) == len(prompts) == 12
    assert not {conversation.messages[0].content for conversation in conversations} & set(prompts)
    assert {_is_chinese(prompt) for prompt in prompts} == {True, False}
    assert all([message.role for message in one.messages] == [Role.USER, Role.ASSISTANT] for one in held_out)
