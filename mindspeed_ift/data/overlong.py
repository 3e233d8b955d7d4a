"""Samples longer than the rows of a run: cut turn by turn, cut at the end, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.cutting import SPLIT, split_balanced
from mindspeed_ift.data.dataset import Samples
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample
from mindspeed_ift.data.templates import Rules


class Overlong(Enum):
    """What becomes of a sample that is longer than ``--seq-length``."""

    CUT_TURNS = "cut turns"
    """Prompt and answer of each turn keep their share of the room; later turns vanish (MindSpeed-LLM's default)."""
    CUT_END = "cut end"
    """The first tokens stay (``--cut-max-seqlen``)."""
    REFUSE = "refuse"
    """An error (``--no-cut-token``; always so for packed rows)."""


def overlong_samples(dataset: Samples, sample_range: range, seq_length: int) -> np.ndarray:
    """Numbers of the samples of a range with more than ``seq_length`` tokens: int64 ``[k]``."""
    lengths = dataset.lengths[sample_range.start : sample_range.stop]
    return np.flatnonzero(lengths > seq_length) + sample_range.start


def count_overlong(dataset: Samples, sample_range: range, seq_length: int) -> int:
    """How many samples of a range have more than ``seq_length`` tokens and would be cut."""
    return len(overlong_samples(dataset, sample_range, seq_length))


def refuse_overlong(dataset: Samples, sample_range: range, seq_length: int, remedy: str) -> None:
    """Do nothing if all samples of the range fit.

    Raises:
        UserError: One does not; names the first and the length that would do.
    """
    samples = overlong_samples(dataset, sample_range, seq_length)
    if len(samples):
        longest = int(dataset.lengths[samples].max())
        prefix, number = dataset.located(int(samples[0]))
        raise UserError(
            f"dataset {prefix}: sample {number} has {dataset.lengths[samples[0]]} tokens, more than"
            f" --seq-length {seq_length} ({len(samples)} such samples, the longest {longest}); {remedy}"
        )


def cut_sample(sample: Sample, seq_length: int, policy: Overlong) -> Sample:
    """The sample with at most ``seq_length`` tokens.

    Args:
        sample: Of any length; one that fits is returned as it is.
        seq_length: Most tokens.
        policy: ``CUT_TURNS`` or ``CUT_END``.
    """
    if len(sample) <= seq_length:
        return sample
    assert policy is not Overlong.REFUSE, "refused before"
    if policy is Overlong.CUT_END:
        kept: slice | np.ndarray = slice(0, seq_length)
    else:
        kept = _kept_positions(sample.labels, seq_length, split_balanced, seq_length)
    return sample.part(kept)


@dataclass(frozen=True)
class RowCut:
    """How ``--neat-pack`` cuts a conversation that fits no row: together turn by turn, each turn by itself, at the end.

    Attributes:
        seq_length: Tokens of a row; one of them stays a pad.
        rules: Of the template, by which turns are cut together.
        closing: Tokens after the last answer, which are no part of it (``--append-eod``).
        at_end: Only at the end, as handlers of MindSpeed-LLM with a prompt of their own do.
    """

    seq_length: int
    rules: Rules = Rules.LLAMA_FACTORY_0_9
    closing: int = 0
    at_end: bool = False

    def kept(self, labels: np.ndarray) -> np.ndarray:
        """Positions that stay, int64 ``[n]``, of a sample that nobody has cut: of one that does not fit
        ``seq_length - 1`` of them. The turns are those that the labels show."""
        if self.at_end:
            return np.arange(min(len(labels), self.seq_length - 1))
        room = self.seq_length - (self.rules is Rules.LLAMA_FACTORY_0_9)
        body = len(labels) - self.closing
        kept = _kept_positions(labels[:body], room, SPLIT[self.rules], self.seq_length - 1)
        return np.concatenate([kept, np.arange(body, len(labels))])[: self.seq_length - 1]


def _kept_positions(
    labels: np.ndarray, room: int, split: Callable[[int, int, int], tuple[int, int]], turn_room: int
) -> np.ndarray:
    """Positions that stay, int64 ``[n]``: of each turn the first of the prompt and of the answer.

    Args:
        labels: Of the turns.
        room: For all of them together, which ``split`` shares out between the prompt and the answer of a turn.
        split: One of `SPLIT`.
        turn_room: For each turn by itself.
    """
    kept = []
    for start, answer, stop in _turns(labels):
        if room <= 0:
            break
        source, target = split(answer - start, stop - answer, room)
        room -= source + target
        source, target = split_balanced(source, target, turn_room)
        kept += [np.arange(start, start + source), np.arange(answer, answer + target)]
    return np.concatenate(kept)


def _turns(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """Where each turn, its answer and the next turn start.

    A turn is a run of tokens that are not learnt (prompt) and the run of learnt ones that follows (answer); a sample
    may begin with an answer or end in a prompt.
    """
    learnt = labels != IGNORED_LABEL
    prompts = np.flatnonzero(~learnt & np.concatenate(([True], learnt[:-1])))
    starts = (prompts if len(prompts) and prompts[0] == 0 else np.concatenate(([0], prompts))).tolist()
    turns = zip(starts, [*starts[1:], len(labels)])
    return [(start, start + int(np.count_nonzero(~learnt[start:stop])), stop) for start, stop in turns]
