"""Prompts for reinforcement learning in, columns out: the ids of a prompt, and of the texts kept beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindspeed_ift.data.conversation import DropRecord, LeaveOut, RolloutPrompt
from mindspeed_ift.data.encode import CUT_NOTE, Encoder, Written, refuse_overlong


@dataclass(frozen=True)
class EncodedRollout:
    """A prompt of which nothing is learnt, and what is kept beside it.

    Attributes:
        values: int32 ``[n]`` by column, ``input_ids`` first; the columns have lengths of their own.
        notes: Rows of the ledger: what was cut or left out.
        cut_tokens: How many tokens of the prompt were cut.
    """

    values: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()
    cut_tokens: int = 0
    learnt_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Of the prompt."""
        return len(self.values["input_ids"])

    def columns(self) -> dict[str, np.ndarray]:
        """By name."""
        return self.values


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
    if options.room is not None and length > options.room and options.overlong != "truncate":
        refuse_overlong(options, length, whole)
    ids = _up_to_answer(encoder.cut(written.turns))
    texts = encoder.tokenizer.encode_batch(list(prompt.texts))
    if options.limit is not None and max(map(len, (ids, *texts))) >= options.limit:
        raise LeaveOut(f"{options.limit} tokens or more (--seq-length)", whole)
    values = {"input_ids": ids, **dict(zip(kept, texts))}
    cut_tokens = whole - len(ids)
    return EncodedRollout(
        {name: np.array(value, np.int32) for name, value in values.items()},
        (*((CUT_NOTE,) if cut_tokens else ()), *written.notes),
        cut_tokens,
    )


def _up_to_answer(turns: Sequence[tuple[list[int], list[int]]]) -> list[int]:
    *before, (last, _) = turns
    return [*(token for source, target in before for token in (*source, *target)), *last]
