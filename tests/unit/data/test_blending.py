"""Which dataset has its turn when, and which of its samples comes then."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data import blending
from mindspeed_ift.data.blending import Blend, BlendedOrder, Part, Turns
from mindspeed_ift.data.boundaries import StoredBoundaries, WholeRow
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.order import SampleOrder
from tests.tiny_dataset import sample, write_dataset

WEIGHTS = st.lists(st.integers(1, 5) | st.integers(1, 1000), min_size=1, max_size=9)


def farthest(turns: Turns, end: int) -> Fraction:
    """Largest distance from a share at any position; counts and numbers of turns are checked on the way."""
    counts, total, worst = [0] * len(turns.weights), sum(turns.weights), Fraction(0)
    for position in range(end):
        dataset, before = turns.at(position)
        assert before == counts[dataset]
        counts[dataset] += 1
        gaps = (count - Fraction(weight * (position + 1), total) for count, weight in zip(counts, turns.weights))
        worst = max(worst, *map(abs, gaps))
    assert turns.counts(end) == counts
    return worst


@given(WEIGHTS)
@settings(deadline=None, max_examples=60)
def test_no_dataset_is_ever_a_sample_away_from_its_share(weights: list[int]) -> None:
    """And after a round all have theirs."""
    turns = Turns(weights)
    total = sum(turns.weights)
    assert farthest(turns, min(2 * total + 3, 1500)) < 1
    assert turns.counts(3 * total) == [3 * weight for weight in turns.weights]


@given(WEIGHTS, st.integers(0, 5000))
@settings(deadline=None, max_examples=40)
def test_shares_that_no_short_round_meets(weights: list[int], position: int) -> None:
    """Rounds then differ, and keep to the shares together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blending, "_ROUND", 16)
        turns = Turns(weights)
        assert farthest(turns, 400) < 2
        total = sum(turns.weights)
        far = [abs(count - position * weight / total) for count, weight in zip(turns.counts(position), turns.weights)]
        assert max(far) < 2 and sum(turns.counts(position)) == position


def test_weights_of_any_kind() -> None:
    assert Turns([Fraction("0.3"), Fraction("0.7")]).weights == [3, 7]
    assert Turns([200, 100]).weights == Turns([Fraction(2, 3), Fraction(1, 3)]).weights == [2, 1]
    assert Turns([1, 3]).shares() == [0.25, 0.75]


def test_billions_cost_no_more_than_hundreds() -> None:
    turns = Turns([Fraction("0.123"), Fraction("0.877")])
    assert turns.counts(10**12) == [123 * 10**9, 877 * 10**9]
    assert turns.at(10**12)[1] in (123 * 10**9, 877 * 10**9) and len(turns._datasets) == 1000


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_dataset_has_epochs_of_its_own(shuffle: bool) -> None:
    """Of its own order; what comes at a position does not depend on what was asked before."""
    sizes, order = [5, 3], BlendedOrder([5, 3], Turns([1, 3]), 7, shuffle)
    taken = [order.index(position) for position in range(40)]
    first, second = ([one for one in taken if (one < 5) is small] for small in (True, False))
    assert [Counter(first[i : i + 5]) for i in (0, 5)] == [Counter(range(5))] * 2
    assert all(Counter(second[i : i + 3]) == Counter(range(5, 8)) for i in range(0, 30, 3))
    orders = [SampleOrder(size, 7 + number, shuffle) for number, size in enumerate(sizes)]
    assert first == [orders[0].index(turn) for turn in range(10)]
    assert second == [5 + orders[1].index(turn) for turn in range(30)]
    assert [BlendedOrder(sizes, Turns([1, 3]), 7, shuffle).index(position) for position in (39, 0, 17)] == [
        taken[39],
        taken[0],
        taken[17],
    ]


def datasets(folder: Path, *counts: int) -> list[InstructionDataset]:
    """Dataset ``d`` holds samples of the ids 100 d, 100 d + 1, ... in rows of two tokens."""
    made = []
    for number, count in enumerate(counts):
        rows = [sample([100 * number + one, 1], [-100, 1], [1, 2] if number else None) for one in range(count)]
        made.append(InstructionDataset(write_dataset(folder / f"d{number}", rows, {"neat_pack": bool(number)})))
    return made


def test_a_blend_is_its_parts_one_after_the_other(tmp_path: Path) -> None:
    """A part may be some of a dataset; each tells boundaries in its own way."""
    first, second = datasets(tmp_path, 4, 3)
    parts = [Part(first, range(1, 3), WholeRow()), Part(second, range(3), StoredBoundaries())]
    blend = Blend(parts, None)
    assert [int(blend[number].input_ids[0]) for number in range(len(blend))] == [1, 2, 100, 101, 102]
    assert [blend[number].segments.tolist() for number in (0, 2)] == [[1, 1], [1, 2]] and blend.has_segments
    assert [blend.located(number) for number in (1, 2)] == [(first.prefix, 2), (second.prefix, 0)]
    assert blend.lengths.tolist() == [2] * 5 and blend.turns.weights == [2, 3]
    assert not Blend([Part(first, range(4))], None).has_segments
    with pytest.raises(UserError, match="d1_packed_input_ids_document: sample 0 holds 100"):
        blend.check_fits(50)


@pytest.mark.parametrize(("weights", "expected"), [(None, 12), ((1, 2), 12), ((1, 1), 8), ((3, 1), 5), ((1, 99), 8)])
def test_how_many_come_once(tmp_path: Path, weights: tuple[int, int] | None, expected: int) -> None:
    first, second = datasets(tmp_path, 4, 8)
    shares = None if weights is None else [Fraction(weight) for weight in weights]
    blend = Blend([Part(first, range(4)), Part(second, range(8))], shares)
    order, once = blend.order(1, shuffle=False), blend.once()
    taken = [order.index(position) for position in range(once + 1)]
    assert once == expected and len(set(taken[:once])) == once
    assert once == len(blend) or len(set(taken)) == once


def test_the_same_dataset_twice_is_shuffled_in_two_ways(tmp_path: Path) -> None:
    (one,) = datasets(tmp_path, 50)
    order = Blend([Part(one, range(50)), Part(one, range(50))], None).order(3, shuffle=True)
    taken = np.array([order.index(position) for position in range(100)]) % 50
    assert sorted(taken[::2]) == sorted(taken[1::2]) == list(range(50)) and (taken[::2] != taken[1::2]).sum() > 40
