"""What counts alike in the loss: weights shared out within tokens, samples, turns and micro-batches."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_ift.data.batch import Batch, DynamicLength, FixedLength, Packed
from mindspeed_ift.data.boundaries import StoredBoundaries
from mindspeed_ift.data.sample import Sample
from tests.tiny_dataset import sample

LENGTH = 64
REDUCTIONS = ("token", "sample", "turn", "micro-batch")
A = sample([1, 2, 3, 4, 5, 6, 7, 8], [-100, 2, 3, -100, -100, 6, 7, 8])
"""Two turns, of two and three tokens."""
B = sample([1, 2, 3], [-100, -100, 3])
NOTHING = sample([1, 2, 3], [-100] * 3)


def weights_and_units(batch: Batch) -> tuple[list[list[float]], int]:
    """Rounded weights of a batch without what is 0, and the units it counts."""
    rows = [[round(float(one), 6) for one in row if one] for row in batch.loss_mask]
    return rows, int(batch.counted.count_nonzero())


@pytest.mark.parametrize(
    ("reduction", "first", "second", "units"),
    [
        ("token", [1.0] * 5, [1.0], 6),
        ("sample", [0.2] * 5, [1.0], 2),
        ("turn", [0.5] * 2 + [0.333333] * 3, [1.0], 3),
        ("micro-batch", [0.166667] * 5, [0.166667], 1),
    ],
)
def test_by_hand(reduction: str, first: list[float], second: list[float], units: int) -> None:
    """A sample without a learnt token counts nowhere."""
    batch = FixedLength(8, 0, loss_reduction=reduction).collate([A, B, NOTHING])
    assert weights_and_units(batch) == ([first, second, []], units) and batch.learnt_tokens == 6
    dynamic = DynamicLength(9, 4, 0, loss_reduction=reduction).collate([A, B, NOTHING])
    assert weights_and_units(dynamic) == weights_and_units(batch)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_learnt_is_no_unit(reduction: str) -> None:
    batch = FixedLength(8, 0, loss_reduction=reduction).collate([NOTHING])
    assert weights_and_units(batch) == ([[]], 0) and not batch.loss_mask.isnan().any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_weight_multiplies_and_one_of_zero_is_not_learnt(reduction: str) -> None:
    """Half the weight is half the loss, whatever the unit; the number of units does not depend on weights over 0."""
    half = replace(A, loss_weights=np.where(A.labels == -100, 0, 0.5).astype(np.float32))
    whole, halved = (FixedLength(8, 0, loss_reduction=reduction).collate([one]) for one in (A, half))
    assert torch.equal(halved.loss_mask, whole.loss_mask / 2) and torch.equal(halved.counted != 0, whole.counted != 0)
    first_turn = replace(A, loss_weights=np.array([0, 1, 1, 0, 0, 0, 0, 0], np.float32))
    batch = FixedLength(8, 0, loss_reduction=reduction).collate([first_turn])
    assert weights_and_units(batch) == (
        [[1.0, 1.0] if reduction == "token" else [0.5, 0.5]],
        1 + (reduction == "token"),
    )


def test_a_part_of_the_rows_out_of_the_loss_takes_its_units_along() -> None:
    for reduction, units in (("token", 1), ("sample", 1), ("turn", 1)):
        batch = FixedLength(8, 0, loss_reduction=reduction).collate([A, B])
        assert weights_and_units(batch.without_rows(torch.tensor([True, False]))) == ([[], [1.0]], units)


def test_positions_that_start_again_tell_samples_apart_too() -> None:
    """Rows whose samples see each other: the last token of one learns the first of the next, which belongs to that."""
    row = sample([1, 2, 3, 4, 5], [-100, 2, 3, 4, 5], [1, 1, 2, 2, 2])
    mode = Packed(
        6, 0, StoredBoundaries(), reset_attention_mask=False, reset_position_ids=True, loss_reduction="sample"
    )
    assert weights_and_units(mode.collate([row])) == ([[1.0, 0.333333, 0.333333, 0.333333]], 2)
    turns = replace(mode, loss_reduction="turn").collate([row])
    assert weights_and_units(turns) == ([[1.0, 0.333333, 0.333333, 0.333333]], 2)


@st.composite
def samples(draw: st.DrawFn) -> list[Sample]:
    """Up to six samples of up to ten tokens, each learnt or not, with weights or none."""
    made = []
    for _ in range(draw(st.integers(1, 6))):
        learnt = np.array(draw(st.lists(st.booleans(), min_size=1, max_size=10)))
        labels = np.where(learnt, np.arange(len(learnt)) + 1, -100).astype(np.int32)
        weights = draw(st.none() | st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=10, max_size=10))
        shares = None if weights is None else np.where(learnt, weights[: len(learnt)], 0).astype(np.float32)
        made.append(Sample(np.arange(len(learnt), dtype=np.int32) + 1, labels, None, shares))
    return made


def plain(some: list[Sample], reduction: str) -> tuple[list[float], int]:
    """Weights of the learnt positions, sample after sample, and the number of units: in loops."""
    turns = [(number, turn) for number, one in enumerate(some) for turn in learnt_runs(one)]
    if reduction == "token":
        units = [[weight] for _, turn in turns for weight in turn]
    elif reduction == "turn":
        units = [turn for _, turn in turns]
    else:
        together = groupby(turns, lambda turn: turn[0] if reduction == "sample" else None)
        units = [[weight for _, turn in group for weight in turn] for _, group in together]
    return [weight / len(unit) for unit in units for weight in unit], len(units)


def learnt_runs(one: Sample) -> list[list[float]]:
    """Weights of each unbroken run of learnt labels, but for the first token's, which nothing predicts."""
    shares = one.loss_weights if one.loss_weights is not None else np.ones(len(one))
    of_labels = np.where(one.labels == -100, 0, shares)[1:].tolist()
    return [list(run) for learnt, run in groupby(of_labels, bool) if learnt]


@given(samples(), st.sampled_from(REDUCTIONS), st.sampled_from([(LENGTH,), (20, LENGTH)]), st.sampled_from([1, 2, 4]))
@settings(deadline=None, max_examples=150)
def test_any_samples_packed_or_not_divided_or_not(
    some: list[Sample], reduction: str, ends: tuple[int, ...], ranks: int
) -> None:
    """A plain computation, rows of one sample, packed rows and parts of rows agree on weights and on the units counted."""
    expected, units = plain(some, reduction)
    alone = FixedLength(LENGTH, 0, loss_reduction=reduction).collate(some)
    rows: list[list[Sample]] = [[] for _ in ends]
    for number, one in enumerate(some):
        rows[number * len(ends) // len(some)].append(one)
    packed = Packed(LENGTH, 0, StoredBoundaries(), loss_reduction=reduction).collate(
        [joined(row) for row in rows if row]
    )
    for batch in (alone, packed):
        found = batch.loss_mask[batch.loss_mask != 0]
        assert found.tolist() == pytest.approx(expected, rel=1e-6) and batch.learnt_tokens == len(expected)
        parts = [batch.at(torch.arange(rank, LENGTH, ranks)) for rank in range(ranks)]
        assert sum(int(part.counted.count_nonzero()) for part in parts) == units
        assert sum(float(part.loss_mask.double().sum()) for part in parts) == pytest.approx(sum(expected), rel=1e-6)


def joined(some: list[Sample]) -> Sample:
    """A row of several samples."""
    weighed = any(one.loss_weights is not None for one in some)
    shares = [one.loss_weights if one.loss_weights is not None else np.ones(len(one), np.float32) for one in some]
    return Sample(
        np.concatenate([one.input_ids for one in some]),
        np.concatenate([one.labels for one in some]),
        np.repeat(np.arange(len(some)) + 1, [len(one) for one in some]),
        np.concatenate(shares) if weighed else None,
    )
