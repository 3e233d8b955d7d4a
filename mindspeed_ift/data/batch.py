"""Samples in, one micro-batch of tensors out: the three sequence modes.

This is the one place where labels are shifted: before it ``labels[i]`` belongs to ``tokens[i]``, after it ``labels[i]``
is the token after ``tokens[i]``. Nothing that splits a batch (context parallel, pipeline) can then lose a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mindspeed_ift.config.tuning import LossReduction
from mindspeed_ift.data.boundaries import PAD_SEGMENT, BoundarySource
from mindspeed_ift.data.loss_units import share_out
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        tokens: int64 ``[micro_batch, sequence]``.
        labels: int64 ``[micro_batch, sequence]``: the token that follows, within the same sample; 0 where nothing is
            learnt.
        loss_mask: float32 ``[micro_batch, sequence]``: 0 where no label is learnt; else 1, or the label's weight
            (`Sample.loss_weights`), divided by the learnt tokens of its unit of the loss (`share_out`).
        position_ids: int64 ``[micro_batch, sequence]``.
        boundaries: int32 ``[n + 1]`` on the host: ends of the segments that may attend within themselves, cumulative
            over the rows one after another, from 0 to ``micro_batch * sequence``; every end of a row is one of them.
            None: each row is one segment.
        real_tokens: tokens of samples, pads left out, of the whole rows.
        pads: bool ``[micro_batch, sequence]``: where no sample is; None: nowhere.
        squared_lengths: sum over these rows' segments, pads left out, of the squared length: what attention costs.
        unit_ends: bool ``[micro_batch, sequence]``: the last learnt position of each unit of the loss; None: each learnt
            token is a unit.
    """

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    boundaries: Tensor | None = None
    real_tokens: int = 0
    squared_lengths: int = 0
    pads: Tensor | None = None
    unit_ends: Tensor | None = None

    @property
    def learnt_tokens(self) -> int:
        """Number of positions that enter the loss."""
        return int(torch.count_nonzero(self.loss_mask))

    @property
    def counted(self) -> Tensor:
        """``[micro_batch, sequence]``, not zero once for each unit of the loss."""
        return self.loss_mask if self.unit_ends is None else self.unit_ends

    @property
    def units(self) -> int:
        """Number of units of the loss: its sum over the global batch is divided by theirs."""
        return int(torch.count_nonzero(self.counted))

    def at(self, positions: Tensor) -> Batch:
        """Some positions of every row, int64 ``[n]``; boundaries and counts keep describing the whole rows."""
        names = ("tokens", "labels", "loss_mask", "position_ids", "pads", "unit_ends")
        parts = {name: getattr(self, name) for name in names}
        return replace(self, **{name: part[:, positions] for name, part in parts.items() if part is not None})

    def without_rows(self, rows: Tensor) -> Batch:
        """The same with some rows, bool ``[micro_batch]``, out of the loss."""
        kept = {name: getattr(self, name) for name in ("loss_mask", "unit_ends")}
        return replace(self, **{name: part * ~rows[:, None] for name, part in kept.items() if part is not None})


@dataclass(frozen=True)
class FixedLength:
    """Every row is padded to ``seq_length``, rounded up.

    Attributes:
        seq_length: Most tokens of a sample.
        pad_id: Fills rows up. Padding is masked by position, so any id will do, that of a real token too.
        multiple: Rows are a multiple of this long, for the sake of the layout.
        loss_reduction: What counts alike in the loss.
    """

    seq_length: int
    pad_id: int
    multiple: int = 1
    loss_reduction: LossReduction = "token"
    samples_can_be_cut: ClassVar[bool] = True

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """One batch of samples that are no longer than ``seq_length``."""
        return _collate(samples, round_up(self.seq_length, self.multiple), self.pad_id, self.loss_reduction)


@dataclass(frozen=True)
class DynamicLength:
    """Every row is padded to the longest of its micro-batch, rounded up.

    Attributes:
        seq_length: Most tokens of a sample.
        multiple: Rows are a multiple of this long.
        pad_id: See `FixedLength`.
        loss_reduction: What counts alike in the loss.
    """

    seq_length: int
    multiple: int
    pad_id: int
    loss_reduction: LossReduction = "token"
    samples_can_be_cut: ClassVar[bool] = True

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """One batch of samples that are no longer than ``seq_length``."""
        return _collate(samples, round_up(max(map(len, samples)), self.multiple), self.pad_id, self.loss_reduction)


@dataclass(frozen=True)
class Packed:
    """Every row holds several samples, which do not see each other when ``reset_attention_mask`` is on.

    Attributes:
        seq_length: Most tokens of a row before padding.
        pad_id: See `FixedLength`. The pads of a row are one segment.
        boundaries: Tells the samples of a row apart.
        reset_attention_mask: Attend within each sample. Off: within the row, as if it were one sample.
        reset_position_ids: Positions start from 0 at each sample (and the pads) instead of at each row.
        multiple: Rows are padded to a multiple of this.
        to_longest: Pad rows to the longest of the micro-batch instead of to ``seq_length``.
        loss_reduction: What counts alike in the loss.
    """

    seq_length: int
    pad_id: int
    boundaries: BoundarySource
    reset_attention_mask: bool = True
    reset_position_ids: bool = False
    multiple: int = 1
    to_longest: bool = False
    loss_reduction: LossReduction = "token"
    samples_can_be_cut: ClassVar[bool] = False

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """One batch of rows that are no longer than ``seq_length``."""
        length = round_up(max(map(len, samples)) if self.to_longest else self.seq_length, self.multiple)
        segments = np.full((len(samples), length), PAD_SEGMENT, np.int64)
        for row, sample in zip(segments, samples):
            row[: len(sample)] = self.boundaries.segments(sample)
        starts = np.ones((len(samples), length), bool)
        starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
        return _collate(
            samples,
            length,
            self.pad_id,
            self.loss_reduction,
            real=segments != PAD_SEGMENT,
            sample_starts=starts,
            attention_starts=starts if self.reset_attention_mask else None,
            position_starts=starts if self.reset_position_ids else None,
        )


SequenceMode = FixedLength | DynamicLength | Packed
"""How samples become rows; chosen once, and nothing after it asks which."""


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is not less than ``length``, at least ``multiple``."""
    return max(1, -(-length // multiple)) * multiple


def _collate(
    samples: Sequence[Sample],
    length: int,
    pad_id: int,
    loss_reduction: LossReduction,
    real: np.ndarray | None = None,
    sample_starts: np.ndarray | None = None,
    attention_starts: np.ndarray | None = None,
    position_starts: np.ndarray | None = None,
) -> Batch:
    """Rows of ``length`` with shifted labels.

    Args:
        samples: One a row, none longer than ``length``.
        length: Tokens of a row.
        pad_id: Fills rows up.
        loss_reduction: What counts alike in the loss.
        real: bool ``[rows, length]``: what is no pad; None: every token of a sample.
        sample_starts: bool ``[rows, length]``: where a sample begins (every row does one); None: nowhere else.
        attention_starts: bool ``[rows, length]``: where a segment begins (every row does); None: no boundaries.
        position_starts: bool ``[rows, length]``: where positions begin from 0; None: at each row.
    """
    assert max(map(len, samples)) <= length, "a sample longer than its row; it should have been cut or refused"
    tokens = _rows([sample.input_ids for sample in samples], length, pad_id)
    following = _rows([sample.labels[1:] for sample in samples], length, IGNORED_LABEL)
    learnt = following != IGNORED_LABEL
    if real is None:
        real = np.arange(length) < np.array([[len(sample)] for sample in samples])
    boundaries, squared_lengths = None, int((real.sum(1) ** 2).sum())
    if attention_starts is not None:
        # The last token of a segment must not predict the first of the next.
        learnt[:, :-1] &= ~attention_starts[:, 1:]
        ends = np.append(np.flatnonzero(attention_starts), tokens.size)
        boundaries = torch.from_numpy(ends.astype(np.int32))
        squared_lengths = int((np.diff(ends)[real.reshape(-1)[ends[:-1]]] ** 2).sum())
    weights = learnt.astype(np.float32)
    for row, sample in zip(weights, samples):
        if sample.loss_weights is not None:
            row[: len(sample) - 1] *= sample.loss_weights[1:]
    # A position learns the token after it, so its unit is that token's.
    of_sample = np.zeros(tokens.shape, np.int64)
    if sample_starts is not None:
        of_sample[:, :-1] = np.cumsum(sample_starts, axis=1)[:, 1:]
    weights, unit_ends = share_out(weights, of_sample, loss_reduction)
    positions = np.broadcast_to(np.arange(length), tokens.shape)
    if position_starts is not None:
        positions = positions - np.maximum.accumulate(np.where(position_starts, positions, 0), axis=1)
    return Batch(
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(np.where(learnt, following, 0)),
        loss_mask=torch.from_numpy(weights),
        position_ids=torch.from_numpy(np.array(positions, np.int64)),
        boundaries=boundaries,
        real_tokens=int(real.sum()),
        squared_lengths=squared_lengths,
        pads=torch.from_numpy(~real),
        unit_ends=None if unit_ends is None else torch.from_numpy(unit_ends),
    )


def _rows(values: Sequence[np.ndarray], length: int, fill: int) -> np.ndarray:
    """int64 ``[rows, length]``: the values of each row from its start, then ``fill``."""
    rows = np.full((len(values), length), fill, np.int64)
    for row, row_values in zip(rows, values):
        row[: len(row_values)] = row_values
    return rows
