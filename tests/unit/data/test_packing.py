"""Packs by the rules: full rows, none of too many samples, an order that a seed decides."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mindspeed_ift.data.packing import ALGORITHMS, PackRules, describe_packs, pack
from mindspeed_ift.data.packing_algorithms import Packs


def some_lengths(longest: int, number: int) -> np.ndarray:
    return np.minimum(np.random.default_rng(0).lognormal(5.5, 1, number).astype(int) + 1, longest)


def tokens_of_rows(packs: Packs, lengths: np.ndarray) -> np.ndarray:
    return np.add.reduceat(lengths[packs.samples], packs.starts[:-1])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_sample_once_in_a_row_that_holds_it(algorithm: str) -> None:
    lengths = some_lengths(4095, 20_000)
    packs = pack(lengths, PackRules(4096, algorithm))
    assert np.array_equal(np.sort(packs.samples), np.arange(20_000))
    assert tokens_of_rows(packs, lengths).max() <= 4095, "one position stays a pad"


@pytest.mark.parametrize("algorithm", ["greedy-knapsack", "best-fit"])
def test_a_million_samples_need_hardly_more_rows_than_their_tokens(algorithm: str) -> None:
    lengths = some_lengths(4095, 1_000_000)
    packs = pack(lengths, PackRules(4096, algorithm))
    bound = -(-int(lengths.sum()) // 4095)
    assert bound <= len(packs) <= bound * 1.0001
    assert np.array_equal(np.sort(packs.samples), np.arange(1_000_000))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_twice_the_same(algorithm: str) -> None:
    lengths = some_lengths(511, 3000)
    first, second = (pack(lengths.copy(), PackRules(512, algorithm)) for _ in range(2))
    assert np.array_equal(first.samples, second.samples) and np.array_equal(first.starts, second.starts)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_row_has_more_segments_than_attention_takes(algorithm: str) -> None:
    """The pads are one of them."""
    lengths = np.random.default_rng(0).integers(1, 6, 5000)
    free, held = (pack(lengths, PackRules(512, algorithm, most)) for most in (1024, 40))
    assert np.diff(free.starts).max() > 100
    assert np.diff(held.starts).max() == 39
    assert np.array_equal(np.sort(held.samples), np.arange(5000))
    assert len(held) <= -(-5000 // 39) + 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_aligned_samples_fill_whole_rows(algorithm: str) -> None:
    lengths = np.random.default_rng(0).integers(1, 64, 500)
    rules = PackRules(64, algorithm, multiple=16)
    assert rules.spaces(np.array([1, 16, 17, 63])).tolist() == [16, 16, 32, 64]
    full = tokens_of_rows(pack(lengths, rules), rules.spaces(lengths))
    assert (full % 16 == 0).all() and full.max() == 64


def test_the_place_of_a_row_tells_nothing_about_its_lengths() -> None:
    lengths = some_lengths(511, 3000)
    rules = PackRules(512, "best-fit", seed=1)
    packs = pack(lengths, rules)
    longest = np.maximum.reduceat(lengths[packs.samples], packs.starts[:-1])
    assert abs(np.corrcoef(longest, np.arange(len(packs)))[0, 1]) < 0.1
    rows = sorted(map(tuple, np.split(packs.samples, packs.starts[1:-1])))
    other = pack(lengths, dataclasses.replace(rules, seed=2))
    assert not np.array_equal(other.samples, packs.samples)
    assert sorted(map(tuple, np.split(other.samples, other.starts[1:-1]))) == rows, "the seed moves rows only"


def test_sequential_keeps_the_order() -> None:
    packs = pack(np.array([3, 4, 1, 7, 7, 2]), PackRules(9, "sequential"))
    assert packs.samples.tolist() == list(range(6)) and packs.starts.tolist() == [0, 3, 4, 5, 6]


def test_rows_that_the_limit_of_segments_made_are_told() -> None:
    lengths, rules = np.array([5, 5, 1, 1, 1]), PackRules(12, max_segments=4)
    assert describe_packs(pack(lengths, rules), 13, rules) == (
        "5 samples packed into 2 rows of 12 (greedy-knapsack), 54.2% full; 1 rows hold as many samples as"
        " --max-segments allows"
    )
    rules = dataclasses.replace(rules, max_segments=10)
    assert describe_packs(pack(lengths, rules), 13, rules).endswith("full")
