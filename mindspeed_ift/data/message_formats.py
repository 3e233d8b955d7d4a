"""Records with a list of messages: ShareGPT, OpenAI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mindspeed_ift.data.conversation import (
    Conversation,
    DropRecord,
    Message,
    PreferencePair,
    Role,
    check_turns,
    parse_json,
)
from mindspeed_ift.data.fields import Record, json_text_of, messages_in, optional, text_of, unwrapped, weight_of


@dataclass(frozen=True)
class Tags:
    """How a message names its fields and speakers (``tags`` of ``--map-keys``)."""

    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    observation_tag: str = "observation"
    function_tag: str = "function_call"
    system_tag: str = "system"


OPENAI_TAGS = Tags("role", "content", "user", "assistant", "tool")


@dataclass(frozen=True)
class SharegptFormat:
    """``conversations`` of ``{"from": human|gpt|observation|function_call|system, "value": text}``.

    Attributes:
        messages: Column of the messages.
        tags: Names within a message.
        system, tools: Columns; None or "" for one that is not read.
    """

    keys: ClassVar[tuple[str, ...]] = ("messages", "tags", "system", "tools")
    title: ClassVar[str] = "ShareGPT"
    makes_pairs: ClassVar[bool] = False
    messages: str = "conversations"
    tags: Tags = Tags()
    system: str | None = None
    tools: str | None = None

    def required(self) -> tuple[str, ...]:
        """Columns without which no record can be read."""
        return (self.messages,)

    def columns(self) -> set[str]:
        """Columns that are read."""
        return {column for column in (getattr(self, key) for key in self.keys if key != "tags") if column}

    def convert(self, record: Record) -> Conversation | PreferencePair:
        """Read one record; a first message of the system is the system prompt."""
        messages, system, tools = self._parts(record, self._list(record.get(self.messages), self.messages))
        return Conversation(check_turns(self._turns(messages)), system, tools)

    def _parts(self, record: Record, messages: list[Record]) -> tuple[list[Record], str, str]:
        """Messages without the system's, system prompt, tools."""
        system = optional(record, self.system)
        if messages and self._is_system(messages[0]):
            system = text_of(messages.pop(0).get(self.tags.content_tag), "the system prompt")
        tools = json_text_of(record.get(self.tools), f"'{self.tools}'") if self.tools else ""
        return messages, system, tools

    def _is_system(self, message: Record) -> bool:
        return message.get(self.tags.role_tag) == self.tags.system_tag

    def _list(self, messages: Any, column: str) -> list[Record]:
        return messages_in(messages, column)

    def _turns(self, messages: list[Record]) -> list[Message]:
        return [Message(self._role(one), self._content(one), weight=weight_of(one)) for one in messages]

    def _role(self, message: Record) -> Role:
        tags = self.tags
        roles = {
            tags.user_tag: Role.USER,
            tags.assistant_tag: Role.ASSISTANT,
            tags.observation_tag: Role.OBSERVATION,
            tags.function_tag: Role.FUNCTION,
        }
        role = message.get(tags.role_tag)
        if not isinstance(role, str) or role not in roles:
            # As Python writes it: a line break or half a character would end up in the table and the manifest.
            raise DropRecord(f"unknown or misplaced role {str(role)[:40]!r}")
        return roles[role]

    def _content(self, message: Record) -> str:
        value = message.get(self.tags.content_tag)
        if not isinstance(value, str):
            raise DropRecord("a message has no text")
        return value


@dataclass(frozen=True)
class OpenAIFormat(SharegptFormat):
    """``messages`` of ``{"role": user|assistant|tool|system, "content": text}``, with ``tool_calls``,
    ``tool_call_id``, ``reasoning_content``.

    Results of parallel calls (several ``tool`` messages in a row) become one prompt. Content may be a list of parts:
    texts, thoughts, calls.
    """

    title: ClassVar[str] = "OpenAI"
    messages: str = "messages"
    tags: Tags = OPENAI_TAGS
    tools: str | None = "tools"

    def _list(self, messages: Any, column: str) -> list[Record]:
        return [_without_parts(message, self.tags.content_tag) for message in super()._list(messages, column)]

    def _is_system(self, message: Record) -> bool:
        return message.get(self.tags.role_tag) == "developer" or super()._is_system(message)

    def _role(self, message: Record) -> Role:
        role = message.get(self.tags.role_tag)
        if role == self.tags.assistant_tag and _calls(message):
            return Role.FUNCTION
        if role in ("observation", "function"):
            return Role.OBSERVATION
        return super()._role(message)

    def _content(self, message: Record) -> str:
        value = message.get(self.tags.content_tag)
        calls = _calls(message)
        thought = next((message[name] for name in _THOUGHTS if message.get(name)), None)
        if value is None and not calls and not thought:
            raise DropRecord("a message has no text")
        text = text_of(value, "a message")
        thought = f"<think>\n{text_of(thought, 'a thought')}\n</think>\n\n" if thought else ""
        if not calls:
            return thought + text
        written = json_text_of([_call(call) for call in calls], "a function call")
        if not text.strip() or (text.lstrip().startswith("<think>") and text.rstrip().endswith("</think>")):
            return thought + text + written
        # Text in front of a call, parted from it as Qwen's own chat template does.
        return f"{thought}{text}\n<tool_call>{written}</tool_call>"

    def _turns(self, messages: list[Record]) -> list[Message]:
        _check_answered(messages)
        turns: list[Message] = []
        for message in super()._turns(messages):
            last = turns[-1] if turns else None
            if last is not None and last.role is message.role is Role.OBSERVATION:
                turns[-1] = Message(Role.OBSERVATION, "", (*(last.results or (last.content,)), message.content))
            else:
                turns.append(message)
        return turns


@dataclass(frozen=True)
class SharegptPairFormat(SharegptFormat):
    """``conversations`` that end in a prompt, and two answers: messages, in ``chosen`` and ``rejected``.

    Instead of ``conversations`` both answers may be whole conversations that differ in the last message.
    """

    keys: ClassVar[tuple[str, ...]] = (*SharegptFormat.keys, "chosen", "rejected")
    title: ClassVar[str] = "ShareGPT pairs"
    makes_pairs: ClassVar[bool] = True
    chosen: str = "chosen"
    rejected: str = "rejected"

    def required(self) -> tuple[str, ...]:
        """Columns without which no record can be read."""
        return (self.chosen, self.rejected)

    def convert(self, record: Record) -> PreferencePair:
        """Read one record."""
        before, chosen = self._split(record.get(self.chosen), self.chosen)
        before_rejected, rejected = self._split(record.get(self.rejected), self.rejected)
        if before != before_rejected:
            raise DropRecord(f"'{self.chosen}' and '{self.rejected}' do not answer the same prompt")
        messages, system, tools = self._parts(record, before or self._list(record.get(self.messages), self.messages))
        return PreferencePair(*(self._conversation(messages, one, system, tools) for one in (chosen, rejected)))

    def _split(self, value: Any, column: str) -> tuple[list[Record], Record]:
        """Messages in front of an answer, and the answer."""
        listed = unwrapped(value)
        if isinstance(listed, list) and all(isinstance(one, dict) for one in listed):
            value = listed
        if isinstance(value, str):
            value = {self.tags.role_tag: self.tags.assistant_tag, self.tags.content_tag: value}
        *before, answer = self._list(value if isinstance(value, list) and value else [value], column)
        return before, answer

    def _conversation(self, messages: list[Record], answer: Record, system: str, tools: str) -> Conversation:
        return Conversation(check_turns(self._turns([*messages, answer])), system, tools)


@dataclass(frozen=True)
class OpenAIPairFormat(SharegptPairFormat, OpenAIFormat):
    """The same with OpenAI's messages."""

    title: ClassVar[str] = "OpenAI pairs"
    messages: str = "messages"
    tags: Tags = OPENAI_TAGS
    tools: str | None = "tools"


_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "reasoning": "thought",
    "thinking": "thought",
    "tool_call": "call",
}
"""Type of a content part -> what it is."""


def _without_parts(message: Record, content_tag: str) -> Record:
    """A message whose content is text; parts that are thoughts or calls stand where OpenAI has them."""
    content = message.get(content_tag)
    if not isinstance(content, list):
        return message
    found: dict[str, list[str]] = {"text": [], "thought": [], "call": []}
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        name = _PARTS.get(kind) if isinstance(kind, str) else None
        value = (
            next((part[key] for key in ("value", "text", kind) if isinstance(part.get(key), str)), None)
            if name
            else None
        )
        if name is None or value is None:
            raise DropRecord("a message holds more than text, thoughts and calls")
        found[name].append(value)
    calls = [*_calls(message), *(parse_json(text, "a function call") for text in found["call"])]
    thought = "".join(found["thought"]) or message.get("reasoning_content")
    return {**message, content_tag: "".join(found["text"]), "tool_calls": calls, "reasoning_content": thought}


def _calls(message: Record) -> list[Any]:
    """``tool_calls``, or the one ``function_call`` of older data."""
    calls = unwrapped(message.get("tool_calls"))
    if calls is not None and not isinstance(calls, list):
        raise DropRecord("'tool_calls' is not a list")
    older = message.get("function_call")
    return calls or ([older] if older else [])


def _call(call: Any) -> dict[str, Any]:
    """Name and arguments of one entry of ``tool_calls``; arguments may be JSON within a string, as OpenAI sends
    them."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DropRecord("a function call has no name or no arguments")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json(arguments, "a function call")
    return {"name": function["name"], "arguments": {} if arguments is None else arguments}


def _check_answered(messages: list[Record]) -> None:
    """Results that name a call (``tool_call_id``) name one of the message before them."""
    asked: set[str] = set()
    for message in messages:
        calls = [call for call in _calls(message) if isinstance(call, dict)]
        if calls:
            asked = {call["id"] for call in calls if isinstance(call.get("id"), str)}
        answered = message.get("tool_call_id")
        if asked and isinstance(answered, str) and answered and answered not in asked:
            raise DropRecord("a result answers a call that was not made (tool_call_id)")
