"""Records in, Conversations out: Alpaca, ShareGPT, OpenAI, and plain text.

A record is a dictionary, as the file has it. `make_format` gives the object for a handler name; its ``convert`` raises
`DropRecord` with the reason for a record that is no sample.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.conversation import (
    Conversation,
    DropRecord,
    LeaveOut,
    Message,
    Role,
    check_text,
    check_turns,
    parse_json,
)

Record = Mapping[str, Any]


def _text(value: Any, what: str) -> str:
    """A text field, None as empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DropRecord(f"{what} is not text")
    return value


def _json_text(value: Any) -> str:
    """Descriptions of tools: JSON text as it is, a parsed list written as JSON."""
    if not value:
        return ""
    return value if isinstance(value, str) else _written(value)


def _written(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise DropRecord("it is nested too deeply") from None


@dataclass(frozen=True)
class AlpacaFormat:
    """``instruction``, ``input``, ``output`` and, if mapped, ``history`` (pairs), ``system``, ``tools``.

    Attributes:
        prompt, query, response, history, system, tools: Columns; None for one that is not read.
    """

    keys: ClassVar[tuple[str, ...]] = ("prompt", "query", "response", "history", "system", "tools")
    prompt: str = "instruction"
    query: str | None = "input"
    response: str = "output"
    history: str | None = None
    system: str | None = None
    tools: str | None = None

    def required(self) -> tuple[str, ...]:
        """Columns without which no record can be read."""
        return (self.prompt, self.response)

    def columns(self) -> set[str]:
        """Columns that are read."""
        return {column for column in (getattr(self, key) for key in self.keys) if column}

    def adapt(self, record: Record) -> AlpacaFormat:
        """The same with ``response`` for ``output`` where the records call it so."""
        if self.response == "output" and "output" not in record and "response" in record:
            return replace(self, response="response")
        return self

    def convert(self, record: Record) -> Conversation:
        """Read one record; prompt and input are joined by a line break, an empty one is left out."""
        messages = []
        for pair in self._history(record):
            messages += [
                Message(Role.USER, _text(pair[0], "history")),
                Message(Role.ASSISTANT, _text(pair[1], "history")),
            ]
        parts = [_text(record.get(column), f"'{column}'") for column in (self.prompt, self.query) if column]
        answer = record.get(self.response)
        if not isinstance(answer, str):
            raise DropRecord(f"'{self.response}' is {'missing or null' if answer is None else 'not text'}")
        messages += [Message(Role.USER, "\n".join(part for part in parts if part)), Message(Role.ASSISTANT, answer)]
        system = _text(record.get(self.system), f"'{self.system}'") if self.system else ""
        return Conversation(tuple(messages), system, _json_text(record.get(self.tools)) if self.tools else "")

    def _history(self, record: Record) -> list[Any]:
        history = record.get(self.history) if self.history else None
        if not history:
            return []
        if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
            raise DropRecord(f"'{self.history}' is not a list of pairs")
        return history


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


@dataclass(frozen=True)
class SharegptFormat:
    """``conversations`` of ``{"from": human|gpt|observation|function_call|system, "value": text}``.

    Attributes:
        messages: Column of the messages.
        tags: Names within a message.
        system, tools: Columns; None for one that is not read.
    """

    keys: ClassVar[tuple[str, ...]] = ("messages", "tags", "system", "tools")
    messages: str = "conversations"
    tags: Tags = field(default_factory=Tags)
    system: str | None = None
    tools: str | None = None

    def required(self) -> tuple[str, ...]:
        """Columns without which no record can be read."""
        return (self.messages,)

    def columns(self) -> set[str]:
        """Columns that are read."""
        return {column for column in (self.messages, self.system, self.tools) if column}

    def adapt(self, record: Record) -> SharegptFormat:
        """Nothing to adapt."""
        return self

    def convert(self, record: Record) -> Conversation:
        """Read one record; a first message of the system is the system prompt."""
        messages = self._messages(record)
        system = _text(record.get(self.system), f"'{self.system}'") if self.system else ""
        if messages and messages[0].get(self.tags.role_tag) == self.tags.system_tag:
            system = self._content(messages.pop(0))
        turns = check_turns(self._turns(messages))
        return Conversation(turns, system, _json_text(record.get(self.tools)) if self.tools else "")

    def _messages(self, record: Record) -> list[Record]:
        messages = record.get(self.messages)
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise DropRecord(f"'{self.messages}' is not a list of messages")
        return list(messages)

    def _turns(self, messages: list[Record]) -> list[Message]:
        return [Message(self._role(message), self._content(message)) for message in messages]

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
    ``reasoning_content``.

    Results of parallel calls (several ``tool`` messages in a row) become one prompt. Content may be a list of parts
    of type text, reasoning or tool_call.
    """

    messages: str = "messages"
    tags: Tags = field(default_factory=lambda: Tags("role", "content", "user", "assistant", "tool"))

    def _messages(self, record: Record) -> list[Record]:
        return [_without_parts(message) for message in super()._messages(record)]

    def _role(self, message: Record) -> Role:
        if message.get("tool_calls") and message.get(self.tags.role_tag) == self.tags.assistant_tag:
            return Role.FUNCTION
        if message.get(self.tags.role_tag) in ("observation", "function"):
            return Role.OBSERVATION
        return super()._role(message)

    def _content(self, message: Record) -> str:
        value = message.get(self.tags.content_tag)
        calls, thought = message.get("tool_calls"), message.get("reasoning_content")
        if value is None and not calls:
            raise DropRecord("a message has no text")
        text = _text(value, "a message")
        thought = f"<think>\n{_text(thought, 'a thought')}\n</think>\n\n" if thought else ""
        if not calls:
            return thought + text
        if text.strip() and not (text.lstrip().startswith("<think>") and text.rstrip().endswith("</think>")):
            raise DropRecord("a message has both text and tool calls")
        if not isinstance(calls, list):
            raise DropRecord("'tool_calls' is not a list")
        return thought + text + _written([_call(call) for call in calls])

    def _turns(self, messages: list[Record]) -> list[Message]:
        turns: list[Message] = []
        for message in super()._turns(messages):
            last = turns[-1] if turns else None
            if last is not None and last.role is message.role is Role.OBSERVATION:
                turns[-1] = Message(Role.OBSERVATION, "", (*(last.results or (last.content,)), message.content))
            else:
                turns.append(message)
        return turns


def _without_parts(message: Record) -> Record:
    """A message whose content is text; parts that are thoughts or calls stand where OpenAI has them."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    found: dict[str, list[str]] = {"text": [], "reasoning": [], "tool_call": []}
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        value = part.get("value", part.get("text")) if isinstance(kind, str) and kind in found else None
        if not isinstance(kind, str) or not isinstance(value, str):
            raise DropRecord("a message holds more than text, thoughts and calls")
        found[kind].append(value)
    given = message.get("tool_calls") or []
    if not isinstance(given, list):
        raise DropRecord("'tool_calls' is not a list")
    calls = [*given, *(parse_json(text, "a function call") for text in found["tool_call"])]
    thought = "".join(found["reasoning"]) or message.get("reasoning_content")
    return {**message, "content": "".join(found["text"]), "tool_calls": calls, "reasoning_content": thought}


def _call(call: Any) -> dict[str, Any]:
    """Name and arguments of one entry of ``tool_calls``; arguments may be JSON within a string, as OpenAI sends
    them."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DropRecord("a function call has no name or no arguments")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = parse_json(arguments, "a function call")
    return {"name": function["name"], "arguments": arguments}


@dataclass(frozen=True)
class TextFormat:
    """Plain text, learnt whole: one dataset for each of ``columns``."""

    keys: ClassVar[tuple[str, ...]] = ()
    json_keys: tuple[str, ...] = ("text",)

    def required(self) -> tuple[str, ...]:
        """Columns without which no record can be read."""
        return self.json_keys

    def columns(self) -> set[str]:
        """Columns that are read."""
        return set(self.json_keys)

    def adapt(self, record: Record) -> TextFormat:
        """Nothing to adapt."""
        return self

    def texts(self, record: Record) -> list[str]:
        """The text of each column."""
        texts = [_text(record.get(key), f"'{key}'") for key in self.json_keys]
        for text in texts:
            check_text(text)
        if not all(texts):
            raise LeaveOut("the text is empty")
        return texts


Format = AlpacaFormat | SharegptFormat | OpenAIFormat | TextFormat

HANDLERS: dict[str, type[Any]] = {
    "AlpacaStyleInstructionHandler": AlpacaFormat,
    "SharegptStyleInstructionHandler": SharegptFormat,
    "OpenAIStyleInstructionHandler": OpenAIFormat,
    "GeneralPretrainHandler": TextFormat,
}
"""``--handler-name`` -> format."""

OPTIONAL_COLUMNS = ("system", "history", "tools")
"""Columns that MindSpeed-LLM's handlers read only when ``--map-keys`` names them."""


def check_handler(name: str) -> None:
    """Refuse a handler that is none.

    Raises:
        UserError: With the nearest name.
    """
    if name == "auto" or name in HANDLERS:
        return
    known = ["auto", *HANDLERS]
    near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"give one of: {', '.join(known)}"
    raise UserError(f"--handler-name {name} is not a handler; {hint}")


def make_format(
    handler: str, map_keys: Mapping[str, Any], json_keys: tuple[str, ...], first: Record, where: str
) -> Format:
    """The format of a dataset.

    Args:
        handler: ``--handler-name``.
        map_keys: ``--map-keys``.
        json_keys: ``--json-keys``.
        first: The first record, to recognize (auto) and to find columns that are not there.
        where: Origin of the first record, for messages.

    Raises:
        UserError: Unknown handler or key, or a column that is not in the data.
    """
    check_handler(handler)
    found = _recognize(first, where, map_keys) if handler == "auto" else HANDLERS[handler]
    if found is TextFormat:
        form: Format = TextFormat(json_keys)
    else:
        form = found(**_checked_keys(found, map_keys, handler))
        if handler == "auto":
            present = {
                key: key for key in OPTIONAL_COLUMNS if key in found.keys and key in first and key not in map_keys
            }
            form = replace(form, **present)
        form = form.adapt(first)
    missing = [column for column in form.required() if column not in first]
    if missing:
        raise UserError(
            f"no column '{missing[0]}' in {where} (it has: {', '.join(map(str, first)) or 'none'});"
            f" name the right one with {'--json-keys' if found is TextFormat else '--map-keys'},"
            " or choose another --handler-name"
        )
    return form


def _recognize(first: Record, where: str, map_keys: Mapping[str, Any]) -> type[Any]:
    column = map_keys.get("messages") or next((name for name in ("conversations", "messages") if name in first), None)
    if column:
        messages = first.get(column)
        message = messages[0] if isinstance(messages, list) and messages and isinstance(messages[0], dict) else {}
        return (
            SharegptFormat if "from" in message or column == "conversations" and "role" not in message else OpenAIFormat
        )
    if map_keys or "instruction" in first:
        return AlpacaFormat
    if set(first) & {"text"}:
        return TextFormat
    raise UserError(
        f"the records of {where} are of no known form (columns: {', '.join(map(str, first)) or 'none'}); name one"
        " with --handler-name and its columns with --map-keys"
    )


def _checked_keys(form: type[Any], map_keys: Mapping[str, Any], handler: str) -> dict[str, Any]:
    keys = dict(map_keys)
    for key in keys:
        if key not in form.keys:
            near = difflib.get_close_matches(key, form.keys, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has: {', '.join(form.keys)}"
            raise UserError(f"--map-keys: {handler} has no key '{key}'; {hint}")
    tags = keys.pop("tags", None)
    for key, column in keys.items():
        if not isinstance(column, str):
            raise UserError(f"--map-keys: '{key}' must name a column, not {json.dumps(column)}")
    if tags is not None:
        known = vars(form().tags)
        if not isinstance(tags, dict) or set(tags) - set(known):
            raise UserError(f"--map-keys: 'tags' must be an object with some of: {', '.join(known)}")
        keys["tags"] = Tags(**{**known, **tags})
    return keys
