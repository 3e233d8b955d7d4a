"""From the boundaries of a micro-batch to what each rank computes: on the host, without communication.

A row is cut into ``2 * ranks`` chunks; rank ``r`` holds chunk ``r`` and chunk ``2 * ranks - 1 - r`` (zigzag), one after
the other. Between two different chunks at most one segment spans: the one that leaves the earlier and enters the later.
That makes a step of the ring simple for any lengths of segments:

* At home both chunks are one causal block with boundaries; where one segment leaves the first chunk and enters the
  second, it goes on across the seam.
* The keys of an earlier rank (``sender < rank``): only its first chunk lies before ours. The spanning segment's tail there
  meets its continuation in our first chunk and, if it fills that, in our second: one rectangle, without a mask.
* The keys of a later rank: both its chunks lie before our second. The head of our second chunk meets the tail of its
  second chunk and, if the segment fills that, of its first: one rectangle again.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor


@dataclass(frozen=True)
class Rectangle:
    """Queries that see all of some keys. Positions count over the local rows laid one after another.

    Attributes:
        queries: of this rank.
        keys: of the sender.
    """

    queries: slice
    keys: slice


@dataclass(frozen=True)
class RingPlan:
    """What one rank computes in each step of the ring.

    Attributes:
        home: ends of the local segments, cumulative over the local rows from 0: one causal block.
        away: for each step from 1 on, at most one rectangle a row.
    """

    home: tuple[int, ...]
    away: tuple[tuple[Rectangle, ...], ...]


@dataclass(frozen=True)
class GatherPlan:
    """What one rank computes for one chunk of a row with the keys of the whole row at hand.

    Attributes:
        row: of the micro-batch.
        queries: local positions of the row.
        keys: positions of the row that the chunk's segments need.
        query_ends: ends of the segments among ``queries``, from 0.
        key_ends: ends of the segments among ``keys``, from 0; only the first has more keys than queries.
    """

    row: int
    queries: slice
    keys: slice
    query_ends: tuple[int, ...]
    key_ends: tuple[int, ...]


def ends_of_rows(boundaries: Tensor | None, rows: int, length: int) -> tuple[int, ...]:
    """Cumulative ends over the rows laid one after another, from 0; without boundaries each row is one segment."""
    return tuple(range(0, rows * length + 1, length) if boundaries is None else boundaries.tolist())


@lru_cache(maxsize=64)  # every layer of a stage asks for the same
def ring_plan(ends: tuple[int, ...], rows: int, length: int, ranks: int, rank: int) -> RingPlan:
    """Plan the ring of ``rank`` for rows of ``length`` tokens (over all ranks), a multiple of ``2 * ranks``.

    Args:
        ends: as `ends_of_rows` returns them.
        rows: of the micro-batch.
        length: of a row.
        ranks: in the ring.
        rank: that computes.
    """
    zigzag, home = _Zigzag(length // (2 * ranks), ranks), [0]
    away: list[list[Rectangle]] = [[] for _ in range(ranks - 1)]
    for row, row_ends in enumerate(_split_rows(ends, rows, length)):
        offset = row * length // ranks
        home += [offset + end for end in zigzag.home_ends(row_ends, rank)]
        for step in range(1, ranks):
            found = zigzag.rectangle(row_ends, rank, (rank - step) % ranks)
            if found is not None:
                queries, keys = (slice(offset + start, offset + stop) for start, stop in found)
                away[step - 1].append(Rectangle(queries, keys))
    return RingPlan(tuple(home), tuple(map(tuple, away)))


@lru_cache(maxsize=64)
def gather_plan(ends: tuple[int, ...], rows: int, length: int, ranks: int, rank: int) -> tuple[GatherPlan, ...]:
    """Plan the attention of ``rank``'s two chunks of each row to the gathered keys; arguments as of `ring_plan`."""
    size = length // (2 * ranks)
    plans = []
    for row, row_ends in enumerate(_split_rows(ends, rows, length)):
        for half, chunk in enumerate((rank, 2 * ranks - 1 - rank)):
            start, stop = chunk * size, (chunk + 1) * size
            first = row_ends[bisect_right(row_ends, start) - 1]
            inner = [*_between(row_ends, start + 1, stop - 1), stop]
            plans.append(
                GatherPlan(
                    row=row,
                    queries=slice(half * size, (half + 1) * size),
                    keys=slice(first, stop),
                    query_ends=(0, *(end - start for end in inner)),
                    key_ends=(0, *(end - first for end in inner)),
                )
            )
    return tuple(plans)


@dataclass(frozen=True)
class _Zigzag:
    """Chunks of ``size`` tokens of one row over ``ranks`` ranks."""

    size: int
    ranks: int

    def chunks(self, rank: int) -> tuple[int, int]:
        """Where the two chunks of a rank start."""
        return rank * self.size, (2 * self.ranks - 1 - rank) * self.size

    def home_ends(self, ends: Sequence[int], rank: int) -> list[int]:
        """Ends of the local segments of one row, without the leading 0."""
        size, (first, second) = self.size, self.chunks(rank)
        local = [end - first for end in _between(ends, first + 1, first + size - 1)]
        if _between(ends, first + size, second):  # else one segment goes on across the seam
            local.append(size)
        local += [size + end - second for end in _between(ends, second + 1, second + size - 1)]
        return [*local, 2 * size]

    def rectangle(self, ends: Sequence[int], rank: int, sender: int) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """(from, to) of the local queries of ``rank`` and of the local keys of ``sender`` in one segment, if there is one."""
        size, (first, second), (sent, sent_second) = self.size, self.chunks(rank), self.chunks(sender)
        if sender < rank:
            start, stop = _segment_across(ends, sent + size, first)
            if start is None:
                return None
            queries = min(stop - first, size) + min(max(stop - second, 0), size)
            return (0, queries), (max(start - sent, 0), size)
        start, stop = _segment_across(ends, sent_second + size, second)
        if start is None:
            return None
        keys = size + max(start - sent_second, 0) if start >= sent + size else max(start - sent, 0)
        return (size, size + min(stop - second, size)), (keys, 2 * size)


def _segment_across(ends: Sequence[int], low: int, high: int) -> tuple[int, int] | tuple[None, None]:
    """(start, stop) of the segment that holds the tokens ``low - 1`` and ``high``, if one holds both."""
    after = bisect_left(ends, low)
    return (ends[after - 1], ends[after]) if ends[after] > high else (None, None)


def _between(ends: Sequence[int], low: int, high: int) -> Sequence[int]:
    """The ends from ``low`` to ``high``, both included."""
    return ends[bisect_left(ends, low) : bisect_right(ends, high)]


def _split_rows(ends: Sequence[int], rows: int, length: int) -> list[list[int]]:
    """For each row its ends, relative to it, from 0 to ``length``."""
    return [[end - row * length for end in _between(ends, row * length, (row + 1) * length)] for row in range(rows)]
