"""Split and order: ranges that cover, permutations that a position alone brings back."""

from __future__ import annotations

import numpy as np
import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.order import BalancedOrder, SampleOrder, imbalance, split_ranges
from mindspeed_ift.data.packing import PackRules, pack


@pytest.mark.parametrize(
    ("size", "split", "lengths"),
    [
        (100, "99,1,0", (99, 1, 0)),
        (200, "98,1,1", (196, 2, 2)),
        (10, "100,0,0", (10, 0, 0)),
        (10, "1", (10, 0, 0)),
        (10, "8/2", (8, 2, 0)),
        (3, "50,50,0", (1, 2, 0)),
        (3, "0,50,50", (0, 1, 2)),
        (7, " 1, 1 ,1", (3, 2, 2)),
        (0, "99,1,0", (0, 0, 0)),
    ],
)
def test_split(size: int, split: str, lengths: tuple[int, int, int]) -> None:
    ranges = split_ranges(size, split)
    assert tuple(map(len, ranges)) == lengths
    assert [number for part in ranges for number in part] == list(range(size))


@pytest.mark.parametrize("split", ["", "a,b", "99;1", "1,2,3,4", "-1,2,0", "0,0,0", "nan,1,0", "inf,1,0"])
def test_bad_split(split: str) -> None:
    with pytest.raises(UserError, match="--split .*as --split 98,1,1"):
        split_ranges(10, split)


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    order = SampleOrder(50, seed=3)
    epochs = [[order.index(epoch * 50 + position) for position in range(50)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(50))
    other = SampleOrder(50, seed=4)
    assert [other.index(position) for position in range(50)] != epochs[0]


def test_a_position_alone_decides() -> None:
    straight, jumping = SampleOrder(13, seed=1), SampleOrder(13, seed=1)
    expected = [straight.index(position) for position in range(60)]
    assert {position: jumping.index(position) for position in (59, 3, 27, 0, 14, 59)} == {
        position: expected[position] for position in (59, 3, 27, 0, 14)
    }


def test_without_shuffling() -> None:
    order = SampleOrder(3, seed=1, shuffle=False)
    assert [order.index(position) for position in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_no_samples() -> None:
    with pytest.raises(UserError, match="larger share of --split"):
        SampleOrder(0, seed=1)


def test_negative_seed() -> None:
    assert sorted(SampleOrder(5, seed=-1).index(position) for position in range(5)) == list(range(5))


@pytest.fixture(scope="module")
def costs() -> np.ndarray:
    """Of rows of 32,768 tokens: short instructions, calls of tools, a few long thoughts."""
    random = np.random.default_rng(0)
    parts = ((200_000, 130, 0.75), (60_000, 415, 0.6), (6_000, 1160, 0.6))
    lengths = np.concatenate([random.lognormal(np.log(middle), width, number) for number, middle, width in parts])
    lengths = np.clip(random.permutation(lengths).astype(np.int64) + 1, 2, 32_767)
    packs = pack(lengths, PackRules(32_768))
    return np.add.reduceat(lengths[packs.samples].astype(float) ** 2, packs.starts[:-1])


@pytest.mark.parametrize(("rows", "micro_batches"), [(1, 1), (1, 4), (2, 1), (2, 3)])
def test_eight_ranks_compute_as_much_as_each_other(costs: np.ndarray, rows: int, micro_batches: int) -> None:
    shuffled = SampleOrder(len(costs), 3)
    plain = costs[[shuffled.index(position) for position in range(len(costs))]]
    balanced = costs[BalancedOrder(costs, 3, 8, rows, micro_batches).permutation(0)]
    assert imbalance(plain, 8, rows, micro_batches) > 1.5
    assert imbalance(balanced, 8, rows, micro_batches) < 1.02
    passes = balanced[: len(costs) // (8 * rows) * 8 * rows].reshape(-1, 8, rows).sum((0, 2))
    assert passes.max() / passes.mean() < 1.02, "over the epoch no rank has more than the others"


@pytest.mark.parametrize("size", [1, 5, 16, 47, 100, 101])
@pytest.mark.parametrize(("ranks", "rows", "micro_batches"), [(1, 1, 1), (4, 1, 3), (2, 2, 2), (8, 3, 1)])
def test_each_row_once_an_epoch_at_a_place_that_its_position_decides(
    size: int, ranks: int, rows: int, micro_batches: int
) -> None:
    values = np.random.default_rng(0).lognormal(0, 1, size)
    order, again = (BalancedOrder(values, 5, ranks, rows, micro_batches) for _ in range(2))
    epochs = [[order.index(epoch * size + position) for position in range(size)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    backwards = [again.index(position) for position in reversed(range(4 * size))]
    assert backwards[::-1] == sum(epochs, [])
    assert size < 16 or len({tuple(epoch) for epoch in epochs}) == 4
    other = BalancedOrder(values, 6, ranks, rows, micro_batches)
    assert size < 16 or [other.index(position) for position in range(size)] != epochs[0]


def test_passes_of_an_epoch_that_starts_within_one_are_balanced_too() -> None:
    """1,003 rows over 8 ranks: the second epoch starts at the fourth row of a pass."""
    values = np.random.default_rng(0).lognormal(0, 0.5, 1003)
    order = BalancedOrder(values, 1, 8)
    taken = values[[order.index(position) for position in range(1000, 2000)]].reshape(-1, 8)
    assert imbalance(taken.reshape(-1), 8, 1, 1) < 1.05
    assert imbalance(np.random.default_rng(1).permutation(values), 8, 1, 1) > 1.5


def test_imbalance() -> None:
    assert imbalance(np.array([1, 3, 2, 2, 9]), 2, 1, 1) == 1.25
    assert imbalance(np.array([1, 3, 3, 1]), 2, 1, 2) == 1 and imbalance(np.array([3, 1, 3, 1]), 2, 1, 2) == 1.5
    assert imbalance(np.array([1, 3, 1, 1]), 2, 2, 1) == pytest.approx(4 / 3)
    assert imbalance(np.ones(3), 2, 2, 1) == 1


def test_no_rows_to_balance() -> None:
    with pytest.raises(UserError, match="larger share of --split"):
        BalancedOrder(np.zeros(0), seed=1)
