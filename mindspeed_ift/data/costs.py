"""Packed rows in, the attention that each costs out: the sum of the squared lengths of its segments."""

from __future__ import annotations

import numpy as np

from mindspeed_ift.data.boundaries import BoundarySource
from mindspeed_ift.data.dataset import Samples
from mindspeed_ift.data.packed_view import PackedView


def attention_costs(samples: Samples, boundaries: BoundarySource, sample_range: range) -> np.ndarray:
    """Cost of each row of a range, float64 ``[rows]``. The pads are a segment too, as attention computes them.

    Args:
        samples: Packed rows; all of them are read, unless a pack index tells their lengths.
        boundaries: Tells the samples of a row apart.
        sample_range: Which rows.
    """
    if isinstance(samples, PackedView):
        return _costs_of_index(samples)[sample_range.start : sample_range.stop]
    costs = np.empty(len(sample_range))
    for place, number in enumerate(sample_range):
        segments = boundaries.segments(samples[number])
        ends = np.flatnonzero(np.diff(segments)) + 1
        sizes = np.diff(np.concatenate(([0], ends, [len(segments)])))
        costs[place] = np.sum(sizes.astype(np.float64) ** 2)
    return costs


def _costs_of_index(view: PackedView) -> np.ndarray:
    rules, starts = view.index.rules, view.index.packs.starts[:-1]
    spaces = rules.spaces(view.index.taken).astype(np.float64)
    pads = rules.seq_length - np.add.reduceat(spaces, starts)
    return np.add.reduceat(spaces**2, starts) + pads**2
