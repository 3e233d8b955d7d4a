"""Records whose dialogues MindSpeed-LLM has handlers for: one text with marks in it (Belle), numbered turns (MOSS),
columns of a task (instructions, LeetCode)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from mindspeed_ift.data.column_formats import AlpacaFormat
from mindspeed_ift.data.conversation import Conversation, DropRecord, Message, Role, check_turns, parse_json
from mindspeed_ift.data.fields import Record, needed, optional

_HUMAN, _ASSISTANT = "Human:", "Assistant:"


@dataclass(frozen=True)
class JoinedFormat(AlpacaFormat):
    """``instruction``, ``input``, ``output``; the input has a line of its own, even an empty one."""

    keys: ClassVar[tuple[str, ...]] = ("prompt", "query", "response")
    title: ClassVar[str] = "Alpaca, joined"

    def convert(self, record: Record) -> Conversation:
        """Read one record."""
        question = f"{needed(record, self.prompt)}\n{optional(record, self.query)}"
        return _one_turn(question, needed(record, self.response))


@dataclass(frozen=True)
class LeetcodeFormat(AlpacaFormat):
    """``code_with_problem``, of which the problem is asked; ``code_only`` and ``explanation_only`` are the answer."""

    keys: ClassVar[tuple[str, ...]] = ("prompt", "query", "response")
    title: ClassVar[str] = "LeetCode"
    prompt: str = "code_with_problem"
    query: str | None = "code_only"
    response: str | None = "explanation_only"

    def required(self) -> tuple[str, ...]:
        """Columns without which no record can be read."""
        return tuple(filter(None, (self.prompt, self.query, self.response)))

    def convert(self, record: Record) -> Conversation:
        """Read one record; what follows the first code fence is no part of the problem."""
        problem = needed(record, self.prompt).split("```", 1)[0].strip()
        return _one_turn(problem, f"{needed(record, self.query)}\n{optional(record, self.response)}")


@dataclass(frozen=True)
class BelleFormat(AlpacaFormat):
    """``instruction`` with all turns but the last answer in one text, ``Human:`` and ``Assistant:`` in front of each;
    ``output`` has the last answer."""

    keys: ClassVar[tuple[str, ...]] = ("prompt", "response")
    title: ClassVar[str] = "Belle"
    query: str | None = None

    def convert(self, record: Record) -> Conversation:
        """Read one record.

        Of an answer everything is kept, whatever marks stand in it; the last ``Assistant:`` opens the answer that
        ``output`` has.
        """
        opening, *turns = needed(record, self.prompt).split(_HUMAN)
        if opening.strip() or not turns:
            raise DropRecord(f"'{self.prompt}' does not begin with '{_HUMAN}'")
        *before, last = turns
        messages = []
        for turn in before:
            question, mark, answer = turn.partition(_ASSISTANT)
            if not mark:
                raise DropRecord(f"a turn of '{self.prompt}' has no '{_ASSISTANT}'")
            messages += [Message(Role.USER, question.strip()), Message(Role.ASSISTANT, answer.strip())]
        question = last.strip().removesuffix(_ASSISTANT).strip()
        answer = needed(record, self.response).strip()
        return Conversation((*messages, Message(Role.USER, question), Message(Role.ASSISTANT, answer)))


@dataclass(frozen=True)
class MossFormat:
    """``chat``: turns by name, in their order, each with ``Human`` and ``MOSS``; thoughts and commands are not read.

    Attributes:
        chat: The column.
    """

    keys: ClassVar[tuple[str, ...]] = ("messages",)
    title: ClassVar[str] = "MOSS"
    makes_pairs: ClassVar[bool] = False
    messages: str = "chat"

    def required(self) -> tuple[str, ...]:
        """Columns without which no record can be read."""
        return (self.messages,)

    def columns(self) -> set[str]:
        """Columns that are read."""
        return {self.messages}

    def convert(self, record: Record) -> Conversation:
        """Read one record, without the marks at the ends of its texts; turns that are null are no turns."""
        chat = record.get(self.messages)
        chat = parse_json(chat, f"'{self.messages}'") if isinstance(chat, str) else chat
        if not isinstance(chat, Mapping):
            raise DropRecord(f"'{self.messages}' is not an object of turns")
        messages: list[Message] = []
        for turn in filter(None, chat.values()):
            if not isinstance(turn, Mapping):
                raise DropRecord(f"a turn of '{self.messages}' is not an object")
            question = needed(turn, "Human").replace("<eoh>", "").replace("<|Human|>: ", "").strip()
            answer = needed(turn, "MOSS").replace("<|MOSS|>:", "").replace("<eom>", "").strip()
            messages += [Message(Role.USER, question), Message(Role.ASSISTANT, answer)]
        return Conversation(check_turns(messages))


def _one_turn(question: str, answer: str) -> Conversation:
    return Conversation((Message(Role.USER, question), Message(Role.ASSISTANT, answer)))
