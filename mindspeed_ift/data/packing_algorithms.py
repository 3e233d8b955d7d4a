"""Lengths in, rows out: ways to choose which samples share a row. Pure and deterministic.

Samples of one length are as good as each other, so greedy and best-fit work on the number of samples a length
(a histogram) and move as many at a time as would be moved in the same way one by one; only at the end is each place
given to a sample. A million samples are planned in hundredths of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packs:
    """Which samples stand in which row.

    Attributes:
        samples: int64 ``[samples]``: sample numbers, row after row.
        starts: int64 ``[rows + 1]``: row ``r`` holds ``samples[starts[r]:starts[r + 1]]``.
    """

    samples: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def reordered(self, order: np.ndarray) -> Packs:
        """The same rows in another order: int64 ``[rows]``, numbers of the rows as they are to follow each other."""
        sizes = np.diff(self.starts)[order]
        starts = np.concatenate(([0], np.cumsum(sizes)))
        return Packs(self.samples[ranges(self.starts[:-1][order], sizes)], starts)


@dataclass(frozen=True)
class Placement:
    """Places for samples of one length: the same number of them in each of neighbouring rows.

    Attributes:
        first: Row.
        rows: How many rows.
        number: Samples of that length in each of them.
    """

    first: int
    rows: int
    number: int


def greedy_knapsack(lengths: np.ndarray, capacity: int, most_samples: int) -> Packs:
    """Fill one row after the other, each time with the longest sample that still fits.

    A length stands for the last unused sample of that length: the rows of LLaMA-Factory's function of this name, which
    MindSpeed-LLM uses.

    Args:
        lengths: int ``[samples]``, each from 1 to ``capacity``.
        capacity: Most tokens in a row.
        most_samples: Most samples in a row.

    Returns:
        Rows in the order they are filled; row 0 starts with the longest sample.
    """
    drawn, sizes = greedy_rows(_counts(lengths, capacity), capacity, most_samples)
    # Both orders group by length; within a group, draws in their order meet samples in falling order.
    descending = len(lengths) - 1 - stable_order(lengths[::-1])
    samples = np.empty(len(lengths), np.int64)
    samples[stable_order(drawn)] = descending
    return Packs(samples, np.concatenate(([0], np.cumsum(sizes))))


def greedy_rows(counts: list[int], capacity: int, most_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """The lengths that `greedy_knapsack` puts into its rows.

    Args:
        counts: Number of samples of each length, from 0 to ``capacity``.
        capacity: Most tokens in a row.
        most_samples: Most samples in a row.

    Returns:
        Lengths, row after row, int64 ``[samples]``; number of samples in each row, int64 ``[rows]``.
    """
    counts, remaining = list(counts), sum(counts)
    drawn: list[int] = []
    numbers: list[int] = []
    sizes: list[int] = []
    # nearest[n]: a length <= n; follow it until it points to itself: the longest non-empty length <= n. 0 is the end.
    nearest = list(range(capacity + 1))
    while remaining:
        row: list[tuple[int, int]] = []
        room, seats, repeats = capacity, most_samples, remaining
        while seats and (length := _longest(nearest, counts, room)):
            number = min(counts[length], room // length, seats)
            # Rows with the same lengths follow for as long as there are samples for them.
            repeats = min(repeats, counts[length] // number)
            counts[length] -= number
            room, seats = room - number * length, seats - number
            row.append((length, number))
        for length, number in row:
            counts[length] -= number * (repeats - 1)
        remaining -= (most_samples - seats) * repeats
        drawn += [length for length, _ in row] * repeats
        numbers += [number for _, number in row] * repeats
        sizes += [most_samples - seats] * repeats
    return np.repeat(np.asarray(drawn, np.int64), np.asarray(numbers, np.int64)), np.asarray(sizes, np.int64)


def best_fit(lengths: np.ndarray, capacity: int, most_samples: int) -> Packs:
    """Put each sample, the longest first, into the fullest row that still takes it; open a row where none does.

    Arguments as of `greedy_knapsack`.

    Returns:
        Rows in the order they are opened, each from its longest sample to its shortest.
    """
    samples = stable_order(lengths)[::-1]
    row = best_fit_rows(lengths[samples], capacity, most_samples)
    return Packs(samples[stable_order(row)], np.concatenate(([0], np.cumsum(np.bincount(row)))))


def best_fit_rows(
    falling: np.ndarray,
    capacity: int,
    most_samples: int,
    open_room: Sequence[int] | np.ndarray = (),
    open_seats: Sequence[int] | np.ndarray = (),
) -> np.ndarray:
    """The row of each sample, by best-fit, where some rows are open from the start: int64 ``[samples]``.

    Args:
        falling: int ``[samples]``: lengths, the longest first.
        capacity: Most tokens in a row.
        most_samples: Most samples in a row.
        open_room: int ``[open rows]``: tokens that each still takes; rows that are opened follow these in number.
        open_seats: int ``[open rows]``: samples that each still takes.
    """
    placements = best_fit_placements(_counts(falling, capacity), capacity, most_samples, open_room, open_seats)
    first, rows, number = (
        np.array([getattr(one, name) for one in placements], np.int64) for name in ("first", "rows", "number")
    )
    # Placements come from the longest samples to the shortest, as the samples do.
    return np.repeat(ranges(first, rows), np.repeat(number, rows))


def best_fit_placements(
    counts: list[int],
    capacity: int,
    most_samples: int,
    open_room: Sequence[int] | np.ndarray = (),
    open_seats: Sequence[int] | np.ndarray = (),
) -> list[Placement]:
    """Where `best_fit` puts the samples of each length, from the longest length to the shortest.

    Arguments as of `greedy_rows` and `best_fit_rows`.
    """
    # Rows by the room left in them, as (first row, rows, seats left in each); one bit for each room with such rows.
    waiting: list[list[tuple[int, int, int]]] = [[] for _ in range(capacity + 1)]
    opened = len(open_room)
    for row in np.flatnonzero((np.asarray(open_room) > 0) & (np.asarray(open_seats) > 0)).tolist():
        waiting[int(open_room[row])].append((row, 1, int(open_seats[row])))
    rooms = sum(1 << left for left, rows in enumerate(waiting) if rows)
    placements: list[Placement] = []
    for length in range(capacity, 0, -1):
        left = counts[length]
        while left:
            above = rooms >> length
            room = length + (above & -above).bit_length() - 1 if above else capacity
            # At least one row more than can be needed, where none takes a sample.
            first, rows, seats = waiting[room].pop() if above else (opened, left, most_samples)
            number = min(room // length, seats, left)
            filled = min(rows, left // number)
            left -= filled * number
            placements.append(Placement(first, filled, number))
            if room - number * length and seats - number:
                waiting[room - number * length].append((first, filled, seats - number))
                rooms |= 1 << room - number * length
            if not above:
                opened += filled
            elif filled < rows:
                waiting[room].append((first + filled, rows - filled, seats))
            if above and not waiting[room]:
                rooms ^= 1 << room
    return placements


def sequential(lengths: np.ndarray, capacity: int, most_samples: int) -> Packs:
    """Keep the order: a row ends where the next sample does not fit. Arguments as of `greedy_knapsack`."""
    ends = np.cumsum(lengths, dtype=np.int64)
    starts, full = [0], 0
    while starts[-1] < len(lengths):
        near = ends[starts[-1] : starts[-1] + most_samples]
        stop = starts[-1] + int(np.searchsorted(near, full + capacity, side="right"))
        starts.append(stop)
        full = int(ends[stop - 1])
    return Packs(np.arange(len(lengths)), np.asarray(starts, np.int64))


def ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """int64 ``[sum of sizes]``: ``starts[i]`` and the ``sizes[i] - 1`` numbers after it, for each ``i``."""
    return np.arange(int(sizes.sum())) + np.repeat(starts - np.cumsum(sizes) + sizes, sizes)


def _counts(lengths: np.ndarray, capacity: int) -> list[int]:
    return np.bincount(lengths, minlength=capacity + 1).tolist()


def _longest(nearest: list[int], counts: list[int], room: int) -> int:
    """The longest length up to ``room`` of which samples are left, 0 for none; shortens the way for later calls."""
    length = room
    while length and (nearest[length] != length or not counts[length]):
        if nearest[length] == length:
            nearest[length] = length - 1
        length = nearest[length]
    while nearest[room] != length and room != length:
        nearest[room], room = length, nearest[room]
    return length


def stable_order(values: np.ndarray) -> np.ndarray:
    """``argsort(values, kind="stable")`` of numbers from 0 on; numpy sorts 16 bits at once ten times as fast."""
    order = np.argsort((values & 0xFFFF).astype(np.uint16), kind="stable")
    shift = 16
    while len(values) and int(values.max()) >> shift:
        high = (values >> shift & 0xFFFF).astype(np.uint16)
        order = order[np.argsort(high[order], kind="stable")]
        shift += 16
    return order
