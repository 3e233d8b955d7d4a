"""Records as prompts for reinforcement learning: what a model is asked, and texts kept beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mindspeed_ift.data.column_formats import AlpacaFormat
from mindspeed_ift.data.conversation import Conversation, RolloutPrompt, check_text
from mindspeed_ift.data.fields import Record, needed
from mindspeed_ift.data.message_formats import SharegptFormat

ANSWER = "labels"
"""Name of the text that is the record's own answer."""


@dataclass(frozen=True)
class RolloutFormat:
    """Conversations up to their last answer, and texts kept beside them.

    Attributes:
        form: How the conversations are read.
        kept: Columns of text that are kept (``--dataset-additional-keys``); `ANSWER` is the last answer.
    """

    makes_pairs: ClassVar[bool] = False
    title: ClassVar[str] = "prompts for reinforcement learning"
    form: AlpacaFormat | SharegptFormat
    kept: tuple[str, ...] = ()

    def required(self) -> tuple[str, ...]:
        """Columns without which no record can be read."""
        return (*self.form.required(), *(column for column in self.kept if column != ANSWER))

    def columns(self) -> set[str]:
        """Columns that are read."""
        return self.form.columns() | set(self.kept) - {ANSWER}

    def convert(self, record: Record) -> RolloutPrompt:
        """Read one record."""
        conversation = self.form.convert(record)
        assert isinstance(conversation, Conversation)
        answer = conversation.messages[-1].content
        texts = [answer if column == ANSWER else needed(record, column) for column in self.kept]
        for text in texts:
            check_text(text)
        return RolloutPrompt(conversation, tuple(texts))
