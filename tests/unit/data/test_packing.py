"""Packs equal the plain reference algorithm's, and a million samples take seconds."""

from __future__ import annotations

import bisect
import time
from collections import defaultdict

import numpy as np

from mindspeed_ift.data.packing import pack


def reference(lengths: list[int], capacity: int) -> list[list[int]]:
    """Again and again the longest that fits; the last unused sample of that length."""
    samples = defaultdict(list)
    for number, length in enumerate(lengths):
        samples[length].append(number)
    left, rows = sorted(lengths), []
    while left:
        row, room = [], capacity
        while (at := bisect.bisect_right(left, room) - 1) >= 0:
            length = left.pop(at)
            room -= length
            row.append(samples[length].pop())
        rows.append(row)
    return rows


def rows_of(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    packs = pack(lengths, capacity)
    return [packs.samples[start:end].tolist() for start, end in zip(packs.starts, packs.starts[1:])]


def test_equals_the_reference() -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        capacity = int(random.integers(1, 150))
        lengths = random.integers(1, capacity + 1, int(random.integers(0, 200)))
        assert rows_of(lengths, capacity) == reference(lengths.tolist(), capacity)


def test_nothing_makes_no_rows() -> None:
    assert len(pack(np.zeros(0, np.int64), 8)) == 0


def test_a_million_samples_are_quick() -> None:
    lengths = np.minimum(np.random.default_rng(0).lognormal(5.5, 1, 1_000_000).astype(int) + 1, 4095)
    started = time.monotonic()
    packs = pack(lengths, 4095)
    assert time.monotonic() - started < 20, "quadratic again?"
    assert np.array_equal(np.sort(packs.samples), np.arange(1_000_000))
