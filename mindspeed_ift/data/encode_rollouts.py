"""Prompts for reinforcement learning in, columns out: the ids of a prompt, and of the texts kept beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mindspeed_ift.data.conversation import DropRecord, RolloutPrompt
from mindspeed_ift.data.encode import CUT_NOTE, Encoder, Written, check_limit, check_room


@dataclass(frozen=True)
class EncodedRollout:
    """A prompt of which nothing is learnt, and what is kept beside it.

    Attributes:
        columns: Column -> its one document, int32 ``[n]``, ``input_ids`` first; each has a length of its own.
        notes: Rows of the ledger: what was cut or left out.
        cut_tokens: How many tokens of the prompt were cut.
    """

    columns: dict[str, list[np.ndarray]]
    notes: tuple[str, ...] = ()
    cut_tokens: int = 0
    documents: ClassVar[int] = 1
    learnt_tokens: ClassVar[int] = 0

    @property
    def tokens(self) -> int:
        """Of the prompt."""
        return len(self.columns["input_ids"][0])


def encode_rollouts(
    encoder: Encoder, prompts: Sequence[RolloutPrompt], kept: Sequence[str]
) -> list[EncodedRollout | DropRecord]:
    """One result a prompt, in order: its columns, or why it has none.

    Args:
        encoder: Its ``cutoff`` or ``room`` cuts prompt and answer together, turn by turn; its ``limit`` drops.
        prompts: What to encode.
        kept: Names of the texts beside each prompt, in their order.
    """
    results: list[EncodedRollout | DropRecord] = []
    for prompt, written in zip(prompts, encoder.write([one.conversation for one in prompts])):
        try:
            results.append(_assemble(encoder, prompt, written, kept))
        except DropRecord as reason:
            results.append(reason)
    return results


def _assemble(
    encoder: Encoder, prompt: RolloutPrompt, written: Written | DropRecord, kept: Sequence[str]
) -> EncodedRollout:
    if isinstance(written, DropRecord):
        raise written
    options = encoder.options
    whole = len(_up_to_answer(written.turns))
    length = whole + len(written.turns[-1][1])
    check_room(options, length, whole)
    ids = _up_to_answer(encoder.cut(written.turns))
    texts = encoder.tokenizer.encode_batch(list(prompt.texts))
    check_limit(options, max(map(len, (ids, *texts))), whole)
    values = {"input_ids": ids, **dict(zip(kept, texts))}
    cut_tokens = whole - len(ids)
    return EncodedRollout(
        {name: [np.array(value, np.int32)] for name, value in values.items()},
        (*((CUT_NOTE,) if cut_tokens else ()), *written.notes),
        cut_tokens,
    )


def _up_to_answer(turns: Sequence[tuple[list[int], list[int]]]) -> list[int]:
    *before, (last, _) = turns
    return [*(token for source, target in before for token in (*source, *target)), *last]
