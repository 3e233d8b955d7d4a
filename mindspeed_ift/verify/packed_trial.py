"""Packed rows in, what is computed of them out: micro-batches as training makes them, and each sample alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mindspeed_ift.config.tuning import LossReduction
from mindspeed_ift.data.batch import Batch, DynamicLength, FixedLength, Packed, SequenceMode
from mindspeed_ift.data.boundaries import PAD_SEGMENT, BoundarySource
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample

PADS = 8
"""Pads behind the longest row, so that what pads do is seen too."""

MOST_SAMPLES = 16
"""Samples that are left of a row that is too long."""

_OPENING = 8
"""Tokens: with so many of its first tokens a second conversation begins, and hardly ever a second question."""


@dataclass(frozen=True)
class Part:
    """One sample in a micro-batch.

    Attributes:
        name: for people: number of the row in the dataset, and of the sample in it.
        row: of the micro-batch.
        start: its first position in the row.
        stop: the position after its last.
        sample: its tokens and labels.
    """

    name: str
    row: int
    start: int
    stop: int
    sample: Sample


@dataclass(frozen=True)
class Trial:
    """A packed micro-batch and the samples in it.

    Attributes:
        batch: as the run's sequence mode makes it, ids and labels numbered among those that occur.
        parts: its samples.
        vocabulary: ids that occur, sorted, int64 ``[vocabulary size]``.
        pad_id: fills rows up.
        multiple: rows are a multiple of this long, for the sake of the layout.
        positions_restart: whether positions begin from 0 at each sample.
        loss_reduction: what counts alike in the loss.
    """

    batch: Batch
    parts: list[Part]
    vocabulary: np.ndarray
    pad_id: int
    multiple: int
    positions_restart: bool
    loss_reduction: LossReduction

    def learning(self, parts: Sequence[Part]) -> Batch:
        """The micro-batch with the labels of some samples only."""
        mask = torch.zeros_like(self.batch.loss_mask)
        for part in parts:
            mask[part.row, part.start : part.stop] = self.batch.loss_mask[part.row, part.start : part.stop]
        return replace(self.batch, loss_mask=mask)

    def others(self, part: Part) -> list[Part]:
        """All samples but one."""
        return [other for other in self.parts if other is not part]

    def poisoned(self, part: Part) -> Batch:
        """Every token of one sample replaced by another, and the labels of all other samples."""
        batch = self.learning(self.others(part))
        tokens = batch.tokens.clone()
        tokens[part.row, part.start : part.stop] += 1
        return replace(batch, tokens=tokens % len(self.vocabulary))

    def alone(self, part: Part) -> Batch:
        """A sample in a row of its own, which needs no boundaries; with the positions that the run gives it."""
        mode = DynamicLength(len(part.sample), self.multiple, self.pad_id, self.loss_reduction)
        batch = mode.collate([part.sample])
        shift = 0 if self.positions_restart else part.start
        return _renumbered(replace(batch, position_ids=batch.position_ids + shift), self.vocabulary)


def make_trials(
    rows: Sequence[tuple[int, Sample]],
    boundaries: BoundarySource,
    mode: SequenceMode,
    *,
    micro_batch_size: int,
    multiple: int,
) -> list[Trial]:
    """Micro-batches of some rows.

    Args:
        rows: number in the dataset and row, short enough to be computed.
        boundaries: tells the samples of a row apart.
        mode: of the run; only the length of its rows is another here.
        micro_batch_size: rows of a micro-batch.
        multiple: rows are a multiple of this long.
    """
    ids = [row.input_ids for _, row in rows] + [np.array([mode.pad_id])]
    vocabulary = np.unique(np.concatenate([*ids, *(row.labels[row.labels != IGNORED_LABEL] for _, row in rows)]))
    length = max(len(row) for _, row in rows) + PADS
    if isinstance(mode, Packed):
        short: SequenceMode = replace(mode, seq_length=length, multiple=multiple, to_longest=False)
    else:
        short = FixedLength(length, mode.pad_id, multiple, mode.loss_reduction)
    trials = []
    for first in range(0, len(rows), micro_batch_size):
        chosen = rows[first : first + micro_batch_size]
        parts = [
            Part(f"row {number} sample {place}", line, start, stop, row.part(slice(start, stop)))
            for line, (number, row) in enumerate(chosen)
            for place, (start, stop) in enumerate(sample_ranges(row, boundaries), 1)
        ]
        batch = _renumbered(short.collate([row for _, row in chosen]), vocabulary)
        restart = isinstance(mode, Packed) and mode.reset_position_ids
        trials.append(Trial(batch, parts, vocabulary, mode.pad_id, multiple, restart, mode.loss_reduction))
    return trials


def sample_ranges(row: Sample, boundaries: BoundarySource) -> list[tuple[int, int]]:
    """First position and the one after the last of each sample of a row, its pads left out."""
    segments = boundaries.segments(row)
    ends = [0, *(np.flatnonzero(np.diff(segments)) + 1).tolist(), len(segments)]
    return [(start, stop) for start, stop in zip(ends[:-1], ends[1:]) if segments[start] != PAD_SEGMENT]


def shortened(row: Sample, boundaries: BoundarySource, tokens: int) -> Sample:
    """The row itself, or where it has more tokens without pads: the end of each of its first samples.

    The end, for there lie the answer and the token that marks it.
    """
    ranges = sample_ranges(row, boundaries)
    kept = ranges
    if sum(stop - start for start, stop in ranges) > tokens:
        share = tokens // min(len(ranges), MOST_SAMPLES)
        kept = [(max(start, stop - share), stop) for start, stop in ranges[:MOST_SAMPLES]]
    return row.part(np.concatenate([np.arange(start, stop) for start, stop in kept]))


def looks_like_several(sample: Sample) -> bool:
    """Whether a sample holds its own opening once more: a second conversation without a boundary before it."""
    opening = sample.input_ids[:_OPENING]
    if len(sample) < 2 * _OPENING:
        return False
    windows = np.lib.stride_tricks.sliding_window_view(sample.input_ids[_OPENING:], _OPENING)
    return bool((windows == opening).all(1).any())


def learns_nothing(sample: Sample) -> bool:
    """Whether a sample has no label, its first apart, which nothing predicts."""
    return bool((sample.labels[1:] == IGNORED_LABEL).all())


def positions_of(parts: Sequence[Part], shape: torch.Size) -> Tensor:
    """Where samples lie, bool ``[rows, length]``."""
    found = torch.zeros(shape, dtype=torch.bool)
    for part in parts:
        found[part.row, part.start : part.stop] = True
    return found


def _renumbered(batch: Batch, vocabulary: np.ndarray) -> Batch:
    """Ids as places in ``vocabulary``; a label that is not learnt may be any."""
    known = torch.from_numpy(vocabulary.astype(np.int64))
    last = len(vocabulary) - 1
    tokens, labels = (torch.searchsorted(known, ids).clamp(max=last) for ids in (batch.tokens, batch.labels))
    return replace(batch, tokens=tokens, labels=labels)
