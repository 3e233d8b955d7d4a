"""What tells two templates apart: a hash of what they write."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from mindspeed_ift.data.conversation import Conversation, DropRecord, Message, Role
from mindspeed_ift.data.templates import FilledPiece, NamedToken, Template, Token, TokenId


def fingerprint(template: Template) -> str:
    """sha256 of what a template writes: equal for templates that write some telling conversations alike."""
    facts: dict[str, Any] = {
        "rules": template.rules.value,
        "stop_words": template.stop_words,
        "replace_eos": template.replace_eos,
        "efficient_eos": template.efficient_eos,
        "written": [
            _written(template, conversation, thinking)
            for conversation in _PROBES
            for thinking in ("none", "true", "false")
        ],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _written(template: Template, conversation: Conversation, thinking: str) -> list[Any]:
    try:
        turns = template.render(conversation, thinking)
    except DropRecord as reason:
        return [str(reason)]
    return [[[_plain(piece) for piece in side] for side in (turn.source, turn.target)] for turn in turns]


def _plain(piece: FilledPiece) -> Any:
    if isinstance(piece, Token):
        return {"special": piece.value}
    if isinstance(piece, TokenId):
        return {"id": piece.number}
    return {"token": piece.text} if isinstance(piece, NamedToken) else piece


def _talk(*messages: tuple[Role, str], system: str = "", tools: str = "") -> Conversation:
    return Conversation(tuple(Message(role, text) for role, text in messages), system, tools)


_CALL = '{"name": "look", "arguments": {"at": "sea", "n": 1}}'
_TOOLS = (
    '[{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object",'
    ' "properties": {"at": {"type": "string", "description": "Where", "enum": ["sea"]}, "n": {"type": "array",'
    ' "items": {"type": "integer"}}}, "required": ["at"]}}}]'
)
_PROBES = (
    _talk((Role.USER, "one"), (Role.ASSISTANT, "two"), (Role.USER, "three"), (Role.ASSISTANT, "four")),
    _talk((Role.USER, "one"), (Role.ASSISTANT, "<think>\nhm\n</think>\n\ntwo"), system="be kind"),
    _talk(
        (Role.USER, "one"),
        (Role.FUNCTION, _CALL),
        (Role.OBSERVATION, "wet"),
        (Role.FUNCTION, f"[{_CALL}, {_CALL}]"),
        (Role.OBSERVATION, "wet"),
        (Role.ASSISTANT, "two"),
        tools=_TOOLS,
    ),
    _talk((Role.USER, "one"), (Role.FUNCTION, _CALL), tools=_TOOLS),
    _talk((Role.USER, "one"), (Role.FUNCTION, "<think>\nhm\n</think>\n\n" + _CALL)),
    Conversation(
        (
            Message(Role.USER, "one"),
            Message(Role.FUNCTION, _CALL),
            Message(Role.OBSERVATION, "", ("wet", "dry")),
            Message(Role.ASSISTANT, "two"),
        )
    ),
)
