"""Samples -> Batch in three sequence modes. Labels are shifted here, once, before anything is split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.boundaries import BoundarySource
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample


@dataclass(frozen=True)
class Batch:
    """One micro-batch, on the host.

    Attributes:
        tokens: int64 ``[micro_batch, sequence]``.
        labels: int64 ``[micro_batch, sequence]``, shifted: the token that follows, 0 where nothing is learnt.
        loss_mask: fp32 ``[micro_batch, sequence]``, 1 where ``labels`` is learnt, else 0.
        position_ids: int64 ``[micro_batch, sequence]``.
        boundaries: int32 ``[n + 1]``, cumulative ends of the segments over the rows laid one after another, from 0 to
            ``micro_batch * sequence``; None: each row is one causal segment.
    """

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    boundaries: Tensor | None

    @property
    def learnt_tokens(self) -> float:
        """Sum of the loss weights."""
        return float(self.loss_mask.sum())


@dataclass(frozen=True)
class FixedLength:
    """Every row is padded to ``seq_length``.

    Attributes:
        seq_length: tokens of a row.
        pad_id: token that fills a row.
    """

    seq_length: int
    pad_id: int

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Pad ``samples`` to rows."""
        return _rows(samples, self.seq_length, self.pad_id)


@dataclass(frozen=True)
class DynamicLength:
    """A micro-batch is padded to its longest sample, rounded up.

    Attributes:
        multiple: what the length is rounded up to.
        pad_id: token that fills a row.
    """

    multiple: int
    pad_id: int

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Pad ``samples`` to the longest of them."""
        longest = max(len(sample) for sample in samples)
        return _rows(samples, -(-longest // self.multiple) * self.multiple, self.pad_id)


@dataclass(frozen=True)
class Packed:
    """Rows hold several samples; attention stays within each.

    Attributes:
        seq_length: tokens of a row.
        pad_id: token that fills a row.
        source: where the samples of a row end.
        reset_attention_mask: attention stays within each sample; off: a row is one causal segment.
        reset_position_ids: positions restart at each sample.
    """

    seq_length: int
    pad_id: int
    source: BoundarySource
    reset_attention_mask: bool = True
    reset_position_ids: bool = False

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Lay ``samples`` (packed rows) out with their boundaries; the pads of a row are a segment of their own."""
        ends = [self.source.ends(sample) for sample in samples]
        # Ours are the pads behind a row that is shorter than the sequence.
        ends = [row if row[-1] == self.seq_length else np.append(row, self.seq_length) for row in ends]
        batch = _rows(samples, self.seq_length, self.pad_id, ends)
        if self.reset_position_ids:
            for row, row_ends in enumerate(ends):
                starts = np.concatenate([[0], row_ends[:-1]])
                lengths = row_ends - starts
                positions = np.arange(self.seq_length) - np.repeat(starts, lengths)
                batch.position_ids[row] = torch.from_numpy(positions)
        if not self.reset_attention_mask:
            return batch
        offsets = [row_ends + row * self.seq_length for row, row_ends in enumerate(ends)]
        boundaries = torch.from_numpy(np.concatenate([[0], *offsets]).astype(np.int32))
        return Batch(batch.tokens, batch.labels, batch.loss_mask, batch.position_ids, boundaries)


SequenceMode = FixedLength | DynamicLength | Packed


def _rows(samples: Sequence[Sample], length: int, pad_id: int, ends: Sequence[np.ndarray] | None = None) -> Batch:
    """Right-pad samples to rows and shift their labels; padding is known by position, never by token value."""
    shape = (len(samples), length)
    tokens = np.full(shape, pad_id, dtype=np.int64)
    shifted = np.full(shape, IGNORED_LABEL, dtype=np.int64)
    for row, sample in enumerate(samples):
        size = len(sample)
        if size > length:
            raise UserError(f"a sample of {size} tokens is longer than --seq-length {length}; raise it to {size}")
        tokens[row, :size] = sample.input_ids
        shifted[row, : size - 1] = sample.labels[1:]
        if ends is not None:
            # The last token of a segment does not predict the first one of the next.
            shifted[row, ends[row] - 1] = IGNORED_LABEL
    learnt = shifted != IGNORED_LABEL
    positions = torch.arange(length).expand(shape).clone()
    return Batch(
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(np.where(learnt, shifted, 0)),
        loss_mask=torch.from_numpy(learnt.astype(np.float32)),
        position_ids=positions,
        boundaries=None,
    )
