"""Split and order: ranges that cover, permutations that a position alone brings back."""

from __future__ import annotations

import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.order import SampleOrder, split_ranges


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
