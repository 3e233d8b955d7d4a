"""Records with a column for each part: Alpaca."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from mindspeed_ift.data.conversation import (
    Conversation,
    DropRecord,
    Message,
    PreferencePair,
    Role,
)
from mindspeed_ift.data.fields import Record, json_text_of, optional, text_of, unwrapped


@dataclass(frozen=True)
class AlpacaFormat:
    """``instruction``, ``input``, ``output`` and, if mapped, ``history`` (pairs), ``system``, ``tools``.

    Attributes:
        prompt, query, response, history, system, tools: Columns; None or "" for one that is not read.
    """

    keys: ClassVar[tuple[str, ...]] = ("prompt", "query", "response", "history", "system", "tools")
    title: ClassVar[str] = "Alpaca"
    makes_pairs: ClassVar[bool] = False
    prompt: str = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    system: str | None = None
    tools: str | None = None

    def required(self) -> tuple[str, ...]:
        """Columns without which no record can be read."""
        return tuple(filter(None, (self.prompt, self.response)))

    def columns(self) -> set[str]:
        """Columns that are read."""
        return {column for column in (getattr(self, key) for key in self.keys) if column}

    def adapt(self, columns: set[str]) -> AlpacaFormat:
        """The same with ``response`` for ``output`` where the records call it so."""
        if self.response == "output" and "output" not in columns and "response" in columns:
            return replace(self, response="response")
        return self

    def convert(self, record: Record) -> Conversation | PreferencePair:
        """Read one record; prompt and input are joined by a line break, an empty one is left out."""
        column = self.response or ""
        return self._conversation(record, record.get(column), column)

    def _conversation(self, record: Record, answer: Any, column: str) -> Conversation:
        messages = []
        for question, reply in self._history(record):
            messages += [Message(Role.USER, question), Message(Role.ASSISTANT, reply)]
        parts = [optional(record, column) for column in (self.prompt, self.query)]
        messages.append(Message(Role.USER, "\n".join(part for part in parts if part)))
        if answer is None:
            raise DropRecord(f"'{column}' is missing or null")
        messages.append(Message(Role.ASSISTANT, text_of(answer, f"'{column}'")))
        tools = json_text_of(record.get(self.tools), f"'{self.tools}'") if self.tools else ""
        return Conversation(tuple(messages), optional(record, self.system), tools)

    def _history(self, record: Record) -> list[list[str]]:
        history = unwrapped(record.get(self.history)) if self.history else None
        if not history:
            return []
        if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
            raise DropRecord(f"'{self.history}' is not a list of pairs")
        if not all(isinstance(text, str) for pair in history for text in pair):
            raise DropRecord(f"a message of '{self.history}' has no text")
        return history


@dataclass(frozen=True)
class AlpacaPairFormat(AlpacaFormat):
    """``instruction``, ``input`` and two answers, the better in ``chosen``, the worse in ``rejected``.

    Both may name one column that is a list of the two, the better first.
    """

    keys: ClassVar[tuple[str, ...]] = ("prompt", "query", "history", "system", "tools", "chosen", "rejected")
    title: ClassVar[str] = "Alpaca pairs"
    makes_pairs: ClassVar[bool] = True
    response: str | None = None
    chosen: str = "chosen"
    rejected: str = "rejected"

    def required(self) -> tuple[str, ...]:
        """Columns without which no record can be read."""
        return (self.prompt, self.chosen, self.rejected)

    def convert(self, record: Record) -> PreferencePair:
        """Read one record."""
        chosen, rejected = record.get(self.chosen), record.get(self.rejected)
        if self.chosen == self.rejected and isinstance(chosen, list) and len(chosen) == 2:
            chosen, rejected = chosen
        return PreferencePair(
            self._conversation(record, chosen, self.chosen), self._conversation(record, rejected, self.rejected)
        )
