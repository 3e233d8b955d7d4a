"""The quick algorithms choose as the plain ones do that look at every row and sample."""

from __future__ import annotations

import bisect
from collections import defaultdict

import numpy as np
import pytest

from mindspeed_ift.data.packing_algorithms import Packs, best_fit, greedy_knapsack, ranges, sequential

ENDLESS = 1 << 40


def plain_knapsack(lengths: list[int], capacity: int, most: int) -> list[list[int]]:
    """Again and again the longest that fits; the last unused sample of that length."""
    samples = defaultdict(list)
    for number, length in enumerate(lengths):
        samples[length].append(number)
    left, rows = sorted(lengths), []
    while left:
        row, room = [], capacity
        while len(row) < most and (at := bisect.bisect_right(left, room) - 1) >= 0:
            length = left.pop(at)
            room -= length
            row.append(samples[length].pop())
        rows.append(row)
    return rows


def plain_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Lengths in each row; the first opened of the fullest rows that take a sample."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return rows


def as_lists(packs: Packs) -> list[list[int]]:
    return [packs.samples[start:end].tolist() for start, end in zip(packs.starts, packs.starts[1:])]


@pytest.mark.parametrize("seed", range(100))
def test_knapsack_is_the_references(seed: int) -> None:
    random = np.random.default_rng(seed)
    capacity = int(random.integers(1, 150))
    lengths = random.integers(1, capacity + 1, int(random.integers(0, 200)))
    for most in (ENDLESS, int(random.integers(1, 6))):
        assert as_lists(greedy_knapsack(lengths, capacity, most)) == plain_knapsack(lengths.tolist(), capacity, most)


@pytest.mark.parametrize("seed", range(100))
def test_best_fit_fills_rows_as_the_plain_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    capacity = int(random.integers(1, 100))
    lengths = random.integers(1, capacity + 1, int(random.integers(0, 150)))
    rows = as_lists(best_fit(lengths, capacity, ENDLESS))
    expected = plain_best_fit(lengths.tolist(), capacity)
    assert sorted(int(lengths[row].sum()) for row in rows) == sorted(map(sum, expected))
    assert sorted(sum(rows, [])) == list(range(len(lengths)))
    assert all((np.diff(lengths[row]) <= 0).all() for row in rows), "longest first"
    held = as_lists(best_fit(lengths, capacity, 2))
    assert sorted(sum(held, [])) == list(range(len(lengths))) and max(map(len, held), default=0) <= 2
    assert all(lengths[row].sum() <= capacity for row in held)


def test_samples_of_a_row_follow_each_other() -> None:
    lengths = np.array([5, 9, 1, 4, 9, 1])
    assert as_lists(sequential(lengths, 10, ENDLESS)) == [[0], [1, 2], [3], [4, 5]]
    assert as_lists(sequential(lengths, 20, 2)) == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("algorithm", [greedy_knapsack, best_fit, sequential])
def test_nothing_makes_no_rows(algorithm: type) -> None:
    assert len(algorithm(np.zeros(0, np.int64), 8, 4)) == 0


def test_lengths_of_more_than_16_bits() -> None:
    lengths = np.array([70_000, 5, 131_000, 65_541, 70_000])
    assert as_lists(greedy_knapsack(lengths, 140_000, ENDLESS)) == [[2, 1], [4, 0], [3]]
    assert as_lists(best_fit(lengths, 140_000, ENDLESS)) == [[2, 1], [4, 0], [3]]


def test_reordered_rows_keep_their_samples() -> None:
    packs = Packs(np.array([4, 2, 0, 1, 3]), np.array([0, 2, 3, 5]))
    assert as_lists(packs.reordered(np.array([2, 0, 1]))) == [[1, 3], [4, 2], [0]]


def test_ranges() -> None:
    assert ranges(np.array([3, 0, 7]), np.array([2, 0, 3])).tolist() == [3, 4, 7, 8, 9]
