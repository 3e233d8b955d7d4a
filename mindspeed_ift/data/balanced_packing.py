"""Lengths in, rows of equal attention cost out, nearly as full as best-fit's: no data parallel rank waits for another.

The cost of a row is the sum of the squared lengths of its samples, and of its pads. Samples are dealt from the longest
on, each to the row that would cost least if the rest of it were filled with what is still to be dealt; the shortest, of
which a row's cost hardly depends, then fill the gaps by best-fit.
"""

from __future__ import annotations

import numpy as np

from mindspeed_ift.data.packing_algorithms import Packs, best_fit, best_fit_rows, stable_order

_TAILS = (1 / 32, 1 / 8, 1 / 2)
"""Share of the tokens that fills gaps, the shortest samples: the first with which rows are as few as best-fit's."""
_DEALT_AT_ONCE = 1 / 16
"""Least share of the rows that get a sample in a round; a smaller one takes longer and evens no better."""
_LEVELLED_ROWS = 32
_LARGE_PADS = 0.05
"""Share of the mean cost of a row from which on its pads are made fewer."""


def balanced(lengths: np.ndarray, capacity: int, most_samples: int) -> Packs:
    """Deal samples so that the sums of their squared lengths are nearly equal. Arguments as of `greedy_knapsack`.

    A sample that alone costs more than the mean stays dear: the shortest samples fill up its row.

    Returns:
        Rows in no particular order, each from its longest sample to its shortest.
    """
    if not len(lengths):
        return Packs(np.zeros(0, np.int64), np.zeros(1, np.int64))
    order = stable_order(lengths)[::-1]
    falling = np.asarray(lengths, np.int64)[order]
    few = len(best_fit(lengths, capacity, most_samples))
    best: np.ndarray | None = None
    for tail in _TAILS:
        rows = _deal(falling, capacity, most_samples, tail)
        if best is None or rows.max() < best.max():
            best = rows
        if best.max() < few:
            break
    assert best is not None
    best = _level(best, falling, capacity, most_samples)
    return Packs(order[stable_order(best)], np.concatenate(([0], np.cumsum(np.bincount(best)))))


def _deal(falling: np.ndarray, capacity: int, most_samples: int, tail: float) -> np.ndarray:
    """The row of each sample: int64 ``[samples]``; no row is empty.

    Args:
        falling: int64 ``[samples]``: lengths, the longest first.
        capacity: Most tokens in a row.
        most_samples: Most samples in a row.
        tail: Share of the tokens, of the shortest samples, that is not dealt but fills gaps.
    """
    total, number = int(falling.sum()), len(falling)
    count = max(-(-total // capacity), -(-number // most_samples))
    # What a row takes where all are equally full: pads that all stand in one row would make it the dearest.
    unit = int(np.gcd.reduce(falling))
    even = min(capacity, -(-total // (count * unit)) * unit)
    # Tokens that are left from each sample on, and their cost.
    tokens_left = total - np.cumsum(falling) + falling
    squares = falling.astype(np.float64) ** 2
    costs_left = squares[::-1].cumsum()[::-1]
    tokens, samples, costs = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count)
    where = np.full(number, -1)
    least = max(1, int(count * _DEALT_AT_ONCE))
    first = 0
    while first < number and tokens_left[first] > tail * total:
        longest, density = int(falling[first]), costs_left[first] / tokens_left[first]
        able = np.flatnonzero(((tokens + longest <= even) | (samples == 0)) & (samples < most_samples))
        if not len(able):
            break
        expected = costs[able] + np.maximum(even - tokens[able], 0) * density
        cheapest = np.argsort(expected, kind="stable")
        # As many as would come one after the other, the cheapest row first, before it is the cheapest again.
        once = int(np.searchsorted(expected[cheapest], expected[cheapest[0]] + longest * (longest - density)))
        dealt = min(max(once, least), len(able), number - first)
        chosen = able[cheapest[:dealt]]
        now = slice(first, first + dealt)
        where[now] = chosen
        tokens[chosen] += falling[now]
        samples[chosen] += 1
        costs[chosen] += squares[now]
        first += dealt
    # Into rows of equal fill first, then wherever there is room.
    for most in (even, capacity):
        found = _fill(where, falling, count, most, capacity, most_samples)
        where = found if most == capacity else np.where(found < count, found, -1)
    return where


def _fill(
    where: np.ndarray, falling: np.ndarray, count: int, most: int, capacity: int, most_samples: int
) -> np.ndarray:
    """Place the samples that have no row (-1) by best-fit: int64 ``[samples]``.

    Args:
        where: int64 ``[samples]``: the row of each.
        falling: int64 ``[samples]``: lengths.
        count: Number of rows; those that are opened follow these in number.
        most: Tokens that each of these is filled up to.
        capacity: Most tokens in a row that is opened.
        most_samples: Most samples in a row.
    """
    left, placed = np.flatnonzero(where < 0), np.flatnonzero(where >= 0)
    tokens = np.bincount(where[placed], weights=falling[placed], minlength=count).astype(np.int64)
    samples = np.bincount(where[placed], minlength=count)
    where = where.copy()
    where[left] = best_fit_rows(falling[left], capacity, most_samples, most - tokens, most_samples - samples)
    return where


def _level(where: np.ndarray, falling: np.ndarray, capacity: int, most_samples: int) -> np.ndarray:
    """Fill rows of many pads, which are nearly empty or full of the shortest samples, with a sample each of many others,
    whose places their own short samples take.

    Arguments as of `_fill`.

    Returns:
        int64 ``[samples]``: the row of each.
    """
    squares = falling.astype(np.float64) ** 2
    for _ in range(_LEVELLED_ROWS):
        mean, samples = float(np.bincount(where, weights=squares).mean()), np.bincount(where)
        pads = capacity - np.bincount(where, weights=falling)
        row = int(pads.argmax())
        if pads[row] ** 2 < _LARGE_PADS * mean:
            break
        kept = (where == row) & (falling >= mean / capacity)
        room, seats = capacity - int(falling[kept].sum()), most_samples - int(kept.sum())
        # Of about the length with which a full row has the mean cost, or is full at all.
        wanted = max((mean - squares[kept].sum()) / room, room / max(seats, 1))
        near = np.flatnonzero((where != row) & (samples[where] > 1))
        near = near[np.argsort(np.abs(falling[near] - wanted), kind="stable")]
        near = near[np.argsort(_turns(where[near]), kind="stable")][:seats]
        taken = near[np.cumsum(falling[near]) <= room]
        changed = np.where((where == row) & ~kept, -1, where)
        changed[taken] = row
        changed = _fill(changed, falling, len(samples), capacity, capacity, most_samples)
        if len(np.bincount(changed)) > len(samples) or not np.bincount(changed).all():
            break
        if (capacity - np.bincount(changed, weights=falling)).max() >= pads[row]:
            break
        where = changed
    return where


def _turns(values: np.ndarray) -> np.ndarray:
    """How often each value, from 0 on, has come before: int64 of the shape of ``values``."""
    order, sizes = stable_order(values), np.bincount(values)
    turns = np.empty(len(values), np.int64)
    turns[order] = np.arange(len(values)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return turns
