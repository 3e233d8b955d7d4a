"""Records learnt whole, as plain text: columns of text, or texts that MindSpeed-LLM's handlers make of other columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from mindspeed_ift.data.conversation import DropRecord, LeaveOut, check_text
from mindspeed_ift.data.fields import Record, messages_in, needed, text_of


@dataclass(frozen=True)
class TextFormat:
    """Plain text, learnt whole: one dataset for each of ``json_keys``.

    Attributes:
        json_keys: Columns.
        seen: What the first records were, for the user, where they were recognized.
    """

    keys: ClassVar[tuple[str, ...]] = ()
    title: ClassVar[str] = "plain text"
    makes_pairs: ClassVar[bool] = False
    json_keys: tuple[str, ...] = ("text",)
    seen: str = field(default="", compare=False)

    def required(self) -> tuple[str, ...]:
        """Columns without which no record can be read."""
        return self.json_keys

    def columns(self) -> set[str]:
        """Columns that are read."""
        return set(self.json_keys)

    def convert(self, record: Record) -> list[str]:
        """The text of each column, "" where it has none."""
        texts = self._texts(record)
        for text in texts:
            check_text(text)
        if not any(texts):
            raise LeaveOut("the text is empty")
        return texts

    def _texts(self, record: Record) -> list[str]:
        return [text_of(record.get(key), f"'{key}'") for key in self.json_keys]


@dataclass(frozen=True)
class SharegptTextFormat(TextFormat):
    """Columns of messages, whose texts (``value`` or ``content``) follow each other with nothing between them."""

    title: ClassVar[str] = "plain text of messages"

    def _texts(self, record: Record) -> list[str]:
        return ["".join(map(_said, messages_in(record.get(key), key))) for key in self.json_keys]


@dataclass(frozen=True)
class MadeTextFormat(TextFormat):
    """One text made of several columns, in a dataset called ``text``.

    Attributes:
        read: The columns that must be there.
    """

    read: ClassVar[tuple[str, ...]]

    def required(self) -> tuple[str, ...]:
        """Columns without which no record can be read."""
        return self.read

    def columns(self) -> set[str]:
        """Columns that are read."""
        return set(self.read)


@dataclass(frozen=True)
class AlpacaTextFormat(MadeTextFormat):
    """``instruction``, ``input`` (may be missing) and ``output`` as a talk between a user and an assistant."""

    title: ClassVar[str] = "plain text of Alpaca"
    read: ClassVar[tuple[str, ...]] = ("instruction", "output")

    def _texts(self, record: Record) -> list[str]:
        given = text_of(record.get("input"), "'input'")
        asked = f"{needed(record, 'instruction')}\n\n" + (f"### Input:\n{given}\n\n" if given else "")
        return [f"{_TALK}### Instruction:\n{asked}### Response: ASSISTANT: {needed(record, 'output')}"]


@dataclass(frozen=True)
class StackOverflowTextFormat(MadeTextFormat):
    """``title``, ``question_body`` and ``answer_body`` of a question about Python."""

    title: ClassVar[str] = "plain text of Stack Overflow"
    read: ClassVar[tuple[str, ...]] = ("title", "question_body", "answer_body")

    def _texts(self, record: Record) -> list[str]:
        title, question, answer = (needed(record, column) for column in self.read)
        return [f"In python, {title}\n### Question:\n{question}\n### Response:\n{answer}\n"]


_TALK = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and"
    " polite answers to the user's questions.USER: Below is an instruction that describes a task. Write a response that"
    " appropriately completes the request.\n\n"
)


def _said(message: Record) -> str:
    value = message.get("value", message.get("content"))
    if not isinstance(value, str):
        raise DropRecord("a message has no text")
    return value
