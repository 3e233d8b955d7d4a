"""Packed rows dealt to ranks: even sums, each row once an epoch, whatever layout a run goes on in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.balanced_order import BalancedOrder, Dealing, imbalances
from mindspeed_ift.data.order import SampleOrder
from mindspeed_ift.data.packing import PackRules, pack
from tests.random_examples import some
from tests.unit.data.test_balanced_packing import LIKE_REAL, costs_of, some_lengths


def taken(order: BalancedOrder | SampleOrder, first: int, stop: int) -> list[int]:
    return [order.index(position) for position in range(first, stop)]


def steps_of(costs: np.ndarray, order: BalancedOrder | SampleOrder, shape: tuple[int, int, int]) -> np.ndarray:
    """Imbalance of each step of three epochs, those between two of them included."""
    step = shape[0] * shape[1] * shape[2]
    return imbalances(costs[taken(order, 0, 3 * len(costs) // step * step)], *shape)


@pytest.fixture(scope="module")
def costs() -> np.ndarray:
    """Of rows of 32,768 tokens: short instructions, calls of tools, a few long thoughts."""
    random = np.random.default_rng(0)
    parts = ((200_000, 130, 0.75), (60_000, 415, 0.6), (6_000, 1160, 0.6))
    lengths = np.concatenate([random.lognormal(np.log(middle), width, number) for number, middle, width in parts])
    lengths = np.clip(random.permutation(lengths).astype(np.int64) + 1, 2, 32_767)
    return costs_of(pack(lengths, PackRules(32_768)), lengths, 32_768)


@pytest.mark.parametrize(("rows", "micro_batches"), [(1, 1), (1, 4), (2, 1), (2, 3)])
def test_eight_ranks_compute_as_much_as_each_other(costs: np.ndarray, rows: int, micro_batches: int) -> None:
    shape = (8, rows, micro_batches)
    order = BalancedOrder(costs, 3, *shape)
    assert steps_of(costs, SampleOrder(len(costs), 3), shape).mean() > 1.5
    assert steps_of(costs, order, shape).mean() < 1.02
    passes = costs[taken(order, 0, len(costs) // (8 * rows) * 8 * rows)].reshape(-1, 8, rows).sum((0, 2))
    assert passes.max() / passes.mean() < 1.1, "over the epoch no rank has more than the others, but for a row or two"


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("rows", [101, 831, 2500])
@pytest.mark.parametrize("kind", LIKE_REAL)
def test_rows_packed_for_it_are_even_however_few_they_are(kind: str, rows: int, micro_batches: int) -> None:
    lengths, shape = some_lengths(LIKE_REAL[kind], rows), (8, 1, micro_batches)
    costs, plain = (
        costs_of(pack(lengths, PackRules(32_768, algorithm)), lengths, 32_768)
        for algorithm in ("balanced", "greedy-knapsack")
    )
    balanced = steps_of(costs, BalancedOrder(costs, 1, *shape), shape)
    assert balanced.mean() < 1.01 and balanced.max() < 1.1
    assert steps_of(plain, SampleOrder(len(plain), 1), shape).mean() > 1.25


def test_costly_rows_without_equals_share_a_step() -> None:
    """There other micro-batches make up for them; spread over all steps each would be waited for in its own."""
    values = np.concatenate((np.ones(1600), np.linspace(2, 9, 32)))
    order = BalancedOrder(values, 0, 8, 1, 4)
    steps = values[taken(order, 0, 1632)].reshape(-1, 32)
    assert (steps > 1.5).sum(1).max() == 32 and ((steps > 1.5).sum(1) > 0).sum() == 1
    assert imbalances(steps.reshape(-1), 8, 1, 4).mean() < 1.001


def test_rows_that_are_left_over_leave_even_passes() -> None:
    """Three passes of costly rows and a costly row; were it not left over, each pass would have one cheap row."""
    values = np.concatenate((np.full(25, 100.0), np.ones(76)))
    assert steps_of(values, BalancedOrder(values, 0, 8), (8, 1, 1)).mean() < 1.1


@pytest.mark.parametrize("size", [1, 5, 16, 47, 100, 101])
@pytest.mark.parametrize(("ranks", "rows", "micro_batches"), [(1, 1, 1), (4, 1, 3), (2, 2, 2), (8, 3, 1)])
def test_each_row_once_an_epoch_at_a_place_that_its_position_decides(
    size: int, ranks: int, rows: int, micro_batches: int
) -> None:
    values = np.random.default_rng(0).lognormal(0, 1, size)
    step = ranks * rows * micro_batches
    order, again = (BalancedOrder(values, 5, ranks, rows, micro_batches) for _ in range(2))
    stop = -(-4 * size // step) * step
    found = taken(order, 0, stop)
    counts = np.bincount(found, minlength=size)
    assert counts.sum() == stop and counts.max() - counts.min() <= 1
    assert [again.index(position) for position in reversed(range(stop))] == found[::-1]
    # Steps may take rows of two epochs and deal them in any order.
    for epoch in range(1, 5):
        whole = epoch * size // step * step
        assert np.bincount(found[:whole], minlength=size).max() <= epoch
    assert size < 16 or taken(BalancedOrder(values, 6, ranks, rows, micro_batches), 0, size) != found[:size]


SHAPES = [(1, 1, 1), (2, 1, 2), (4, 1, 1), (2, 2, 1), (8, 1, 1), (3, 1, 2), (4, 2, 3)]


@some(200)
@given(
    st.integers(1, 60),
    st.lists(st.tuples(st.sampled_from(SHAPES), st.booleans(), st.integers(1, 9)), min_size=1, max_size=6),
    st.integers(0, 3),
)
def test_a_run_goes_on_in_any_layout_without_a_row_twice_in_an_epoch(
    size: int, parts: list[tuple[tuple[int, int, int], bool, int]], seed: int
) -> None:
    """Parts of a run: its layout, whether it is balanced, its steps."""
    values = np.random.default_rng(seed).lognormal(0, 1, size)
    consumed, dealing, found = 0, None, []
    for shape, is_balanced, steps in parts:
        goes_on = dealing is not None and consumed % size
        order: BalancedOrder | SampleOrder = SampleOrder(size, seed)
        if is_balanced or goes_on:
            layout = shape if is_balanced else ()
            order = BalancedOrder(values, seed, *layout, consumed=consumed, begun=dealing)
        for _ in range(steps):
            step = shape[0] * shape[1] * shape[2]
            found += taken(order, consumed, consumed + step)
            consumed += step
            counts = np.bincount(found, minlength=size)
            assert counts.max() - counts.min() <= 1, "none twice before each came once"
        dealing = order.dealing(consumed)


@pytest.mark.parametrize("shape", [(2, 1, 4), (8, 1, 1), (1, 2, 4), (4, 1, 2)])
def test_steps_take_the_same_rows_in_any_layout(shape: tuple[int, int, int]) -> None:
    """Of the same global batch, until the epoch ends; ranks take them otherwise."""
    values = np.random.default_rng(0).lognormal(0, 1, 83)
    whole = BalancedOrder(values, 1, 4, 1, 2)
    resumed = BalancedOrder(values, 1, *shape, consumed=24, begun=whole.dealing(24))
    for first in range(24, 80, 8):
        assert sorted(taken(resumed, first, first + 8)) == sorted(taken(whole, first, first + 8))
    if shape == (4, 1, 2):
        assert taken(resumed, 24, 400) == taken(whole, 24, 400)
    assert resumed.dealing(80) == Dealing(4, 8)
    assert resumed.dealing(88) == (Dealing(4, 8) if shape == (4, 1, 2) else Dealing(*SIZES[shape], 24))


SIZES = {(2, 1, 4): (2, 8), (8, 1, 1): (8, 8), (1, 2, 4): (2, 8)}


def test_imbalances() -> None:
    assert imbalances(np.array([1, 3, 2, 2, 9]), 2, 1, 1).tolist() == [1.5, 1]
    assert imbalances(np.array([1, 3, 3, 1]), 2, 1, 2).tolist() == [1]
    assert imbalances(np.array([3, 1, 3, 1]), 2, 1, 2).tolist() == [1.5]
    assert imbalances(np.array([1, 3, 1, 1]), 2, 2, 1).tolist() == pytest.approx([4 / 3])
    assert len(imbalances(np.ones(3), 2, 2, 1)) == 0


def test_tells_what_it_comes_to(costs: np.ndarray) -> None:
    said = BalancedOrder(costs, 3, 8).describe(can_be_packed_anew=True)
    assert said.startswith("in a step the costliest of 8 ranks computes 1.") and "% if rows were only shuffled)" in said
    assert not said.count(":")
    few = np.concatenate((np.ones(60), np.full(4, 9.0)))
    assert BalancedOrder(few, 3, 8).describe(can_be_packed_anew=True) == (
        "in a step the costliest of 8 ranks computes 10.0% more attention than their mean (133.3% if rows were only"
        " shuffled): some rows cost what no others do; pack the samples with --packing-algorithm balanced"
    )
    assert BalancedOrder(few, 3, 8).describe(can_be_packed_anew=False).endswith("do; more data has more alike")
    assert "waits for no other" in BalancedOrder(few, 3).describe(can_be_packed_anew=True)


def test_no_rows_to_balance() -> None:
    with pytest.raises(UserError, match="larger share of --split"):
        BalancedOrder(np.zeros(0), seed=1)
