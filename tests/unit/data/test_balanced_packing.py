"""Rows of equal attention cost: every sample once, as few rows as best-fit's, and what they cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspeed_ift.data.balanced_packing import balanced
from mindspeed_ift.data.packing import PackRules, pack
from mindspeed_ift.data.packing_algorithms import Packs, best_fit
from tests.random_examples import some

ROW = 32_768
ALPACA, TOOLS, THOUGHTS = (130, 0.75), (415, 0.6), (1160, 0.6)
"""Middle length and width of its logarithm."""
LIKE_REAL: dict[str, tuple[tuple[float, tuple[int, float]], ...]] = {
    "alpaca": ((1, ALPACA),),
    "tools": ((1, TOOLS),),
    "thoughts": ((1, THOUGHTS),),
    "all": ((0.45, ALPACA), (0.4, TOOLS), (0.15, THOUGHTS)),
}
"""Share of the tokens of each part."""


def some_lengths(parts: tuple[tuple[float, tuple[int, float]], ...], rows: int) -> np.ndarray:
    """Up to 2,500 tokens: a much longer sample alone costs more than the mean of rows of these."""
    random = np.random.default_rng(0)
    drawn = []
    for share, (middle, width) in parts:
        lengths = np.clip(random.lognormal(np.log(middle), width, rows * ROW // 50), 2, 2500).astype(np.int64)
        drawn.append(lengths[: int(np.searchsorted(lengths.cumsum(), rows * ROW * share))])
    return random.permutation(np.concatenate(drawn))


def costs_of(packs: Packs, lengths: np.ndarray, capacity: int) -> np.ndarray:
    taken, starts = lengths[packs.samples].astype(np.float64), packs.starts[:-1]
    return np.add.reduceat(taken**2, starts) + (capacity - np.add.reduceat(taken, starts)) ** 2


def check_rows(packs: Packs, lengths: np.ndarray, capacity: int, most: int) -> None:
    assert np.array_equal(np.sort(packs.samples), np.arange(len(lengths)))
    assert np.diff(packs.starts).min() > 0 and np.diff(packs.starts).max() <= most
    assert np.add.reduceat(lengths[packs.samples], packs.starts[:-1]).max() <= capacity


@some(150)
@given(
    st.integers(1, 300).flatmap(
        lambda capacity: st.tuples(
            st.just(capacity),
            st.lists(
                st.one_of(st.integers(1, capacity), st.integers(1, max(1, capacity // 20))), min_size=1, max_size=400
            ),
        )
    ),
    st.integers(1, 500),
)
def test_each_sample_once_in_a_row_that_holds_it(capacity_and_lengths: tuple[int, list[int]], most: int) -> None:
    capacity, lengths = capacity_and_lengths[0], np.array(capacity_and_lengths[1])
    packs = balanced(lengths, capacity, most)
    check_rows(packs, lengths, capacity, most)
    few = best_fit(lengths, capacity, most)
    assert len(packs) <= len(few) * 1.02 + 2
    again = balanced(lengths.copy(), capacity, most)
    assert np.array_equal(again.samples, packs.samples) and np.array_equal(again.starts, packs.starts)


@pytest.mark.parametrize("rows", [20, 101, 831, 2500])
@pytest.mark.parametrize("kind", LIKE_REAL)
def test_rows_cost_the_same_and_are_as_few_as_best_fits(kind: str, rows: int) -> None:
    lengths = some_lengths(LIKE_REAL[kind], rows)
    packs = balanced(lengths, ROW - 1, 1023)
    check_rows(packs, lengths, ROW - 1, 1023)
    few = best_fit(lengths, ROW - 1, 1023)
    assert len(packs) <= len(few) * 1.001 + 1
    ours, theirs = (costs.std() / costs.mean() for costs in (costs_of(found, lengths, ROW) for found in (packs, few)))
    assert ours < 0.08 < theirs / 4


def test_a_million_samples_need_hardly_more_rows_than_their_tokens() -> None:
    lengths = np.minimum(np.random.default_rng(0).lognormal(5.5, 1, 1_000_000).astype(int) + 1, 4095)
    bound = -(-int(lengths.sum()) // 4095)
    assert bound <= len(balanced(lengths, 4095, 1023)) <= bound * 1.0001


def test_pads_are_spread() -> None:
    """A row that the last samples open would cost more than any other for its pads alone."""
    lengths = np.random.default_rng(0).integers(300, 900, 2000)
    packs = balanced(lengths, ROW - 1, 1023)
    pads = ROW - 1 - np.add.reduceat(lengths[packs.samples], packs.starts[:-1])
    costs = costs_of(packs, lengths, ROW)
    assert pads.sum() > ROW // 4, "nearly a row of pads in all"
    assert pads.max() < 3000 and costs.max() < 1.1 * costs.mean()


def test_short_samples_go_to_the_rows_of_the_longest() -> None:
    lengths = np.concatenate((np.full(6, 20_000), np.full(600, 300), np.full(3000, 40)))
    rules = PackRules(ROW, "balanced")
    packs = pack(lengths, rules)
    longest = np.maximum.reduceat(lengths[packs.samples], packs.starts[:-1])
    of_long = [row for row in range(len(packs)) if longest[row] == 20_000]
    with_them = np.concatenate([lengths[packs.samples[packs.starts[row] : packs.starts[row + 1]]] for row in of_long])
    assert len(of_long) == 6, "one each"
    assert np.mean(with_them[with_them < 20_000] == 40) > 0.8


def test_as_many_samples_as_a_row_may_hold() -> None:
    lengths = np.random.default_rng(0).integers(1, 20, 5000)
    packs = balanced(lengths, 4095, 100)
    check_rows(packs, lengths, 4095, 100)
    costs = costs_of(packs, lengths, 4096)
    assert len(packs) == 50 and costs.max() < 1.02 * costs.mean()
