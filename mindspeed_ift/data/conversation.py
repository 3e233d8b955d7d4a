"""Conversation: the one form between the formats that read records and the templates that write text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Role(str, Enum):
    """Who speaks. Prompts are user and observation (a tool's result); answers are assistant and function."""

    USER = "user"
    OBSERVATION = "observation"
    ASSISTANT = "assistant"
    FUNCTION = "function"


PROMPT_ROLES = (Role.USER, Role.OBSERVATION)
ANSWER_ROLES = (Role.ASSISTANT, Role.FUNCTION)


class DropRecord(Exception):
    """This record cannot become a sample; the argument is the reason, a row of the ledger. Users never see it."""

    malformed = True
    """The record is at fault, so it counts for ``--max-drop-fraction``."""
    cut_tokens = 0
    """Tokens that the sample would have had, where that is known."""


class LeaveOut(DropRecord):
    """Nothing is wrong with the record, but a rule leaves it out.

    Args:
        reason: A row of the ledger.
        cut_tokens: Tokens that the sample would have had.
    """

    malformed = False

    def __init__(self, reason: str, cut_tokens: int = 0) -> None:
        super().__init__(reason)
        self.cut_tokens = cut_tokens


@dataclass(frozen=True)
class Message:
    """One turn of one speaker.

    Attributes:
        role: Who speaks.
        content: The text; of a FUNCTION message the calls as JSON (one object or a list), after a thought if there
            is one.
        results: Of an OBSERVATION message: several results of parallel calls, where ``content`` is empty.
        weight: Its share in the loss as the record has it, from 0 (not learnt) on; None where it does not say.
    """

    role: Role
    content: str
    results: tuple[str, ...] = ()
    weight: float | None = None


@dataclass(frozen=True)
class Conversation:
    """Messages that alternate between prompt and answer, and end in an answer.

    Attributes:
        messages: Even in number, at least two.
        system: System prompt; "" takes the template's default.
        tools: Descriptions of the tools as JSON (a list); "" for none.

    Raises:
        DropRecord: A text is none, see `check_text`.
    """

    messages: tuple[Message, ...]
    system: str = ""
    tools: str = ""

    def __post_init__(self) -> None:
        for message in self.messages:
            check_text(message.content)
            for text in message.results:
                check_text(text)
        check_text(self.system)
        check_text(self.tools)


@dataclass(frozen=True)
class PreferencePair:
    """Two conversations that differ in the last answer only.

    Attributes:
        chosen: With the better answer.
        rejected: With the worse one.
    """

    chosen: Conversation
    rejected: Conversation


@dataclass(frozen=True)
class RolloutPrompt:
    """What a model is to answer anew in reinforcement learning.

    Attributes:
        conversation: Its last answer is not shown.
        texts: Kept beside it.
    """

    conversation: Conversation
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class ToolCall:
    """A call of a function: its name and its arguments (any JSON value, an object as a rule)."""

    name: str
    arguments: Any


def check_turns(messages: list[Message]) -> tuple[Message, ...]:
    """The messages, if prompt and answer alternate and the last is an answer.

    Raises:
        DropRecord: They do not, or there are none.
    """
    if not messages:
        raise DropRecord("no messages")
    for number, message in enumerate(messages):
        if message.role not in (ANSWER_ROLES if number % 2 else PROMPT_ROLES):
            raise DropRecord("prompt and answer do not alternate")
    if len(messages) % 2:
        raise DropRecord("the last prompt has no answer")
    return tuple(messages)


def check_text(text: str) -> None:
    """Do nothing for text that can be written.

    Raises:
        DropRecord: It has one half of a surrogate pair (``"\\ud83d"`` in JSON): cut through an emoji, as a rule.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DropRecord("its text is cut within a character (half of a surrogate pair)") from None


def parse_json(text: str, what: str) -> Any:
    """The value of a text within a record.

    Args:
        text: JSON.
        what: It is, for the reason.

    Raises:
        DropRecord: It is not JSON, or nested more deeply than any reader takes.
    """
    try:
        value = json.loads(text)
        if r"\ud" in text.lower():
            check_text(json.dumps(value, ensure_ascii=False))
        return value
    except (ValueError, RecursionError):
        raise DropRecord(f"{what} is not JSON") from None


def parse_tool_calls(text: str) -> list[ToolCall]:
    """Calls written as JSON: ``{"name": ..., "arguments": ...}`` or a list of these.

    Raises:
        DropRecord: It is not JSON, or a call has no name or no arguments.
    """
    calls = parse_json(text, "a function call")
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) and "arguments" in call for call in calls):
        raise DropRecord("a function call has no name or no arguments")
    return [ToolCall(call["name"], call["arguments"]) for call in calls]


def parse_tools(text: str) -> list[dict[str, Any]]:
    """Descriptions of tools written as JSON: a list of objects, or one; none for an empty list, object or text.

    Raises:
        DropRecord: It is not that.
    """
    tools = parse_json(text, "the description of the tools")
    if tools in ([], {}, ""):
        return []
    tools = tools if isinstance(tools, list) else [tools]
    if not all(isinstance(tool, dict) for tool in tools):
        raise DropRecord("the description of the tools is not a list of objects")
    return tools
