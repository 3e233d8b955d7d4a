"""What is computed of packed rows: ranges, cuts, masks, poison, and samples that are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mindspeed_ift.data.batch import Packed
from mindspeed_ift.data.boundaries import EndOfDocument, StoredBoundaries
from mindspeed_ift.data.sample import Sample
from mindspeed_ift.verify.packed_trial import (
    learns_nothing,
    looks_like_several,
    make_trials,
    sample_ranges,
    shortened,
)
from tests.tiny_dataset import random_sample, sample

PAD = 3


def row_of(*parts: Sample, pads: int = 2) -> Sample:
    """Packed as --neat-pack does."""
    ids = [*np.concatenate([part.input_ids for part in parts]), *[PAD] * pads]
    labels = [*np.concatenate([part.labels for part in parts]), *[-100] * pads]
    return sample(ids, labels, np.repeat([*range(1, len(parts) + 1), 0], [*map(len, parts), pads]).tolist())


def rows(number: int, turns: int = 2) -> list[tuple[int, Sample]]:
    random = np.random.default_rng(4)
    return [(place, row_of(*(random_sample(random, turns) for _ in range(3)))) for place in range(number)]


def test_ranges_leave_out_pads() -> None:
    row = row_of(sample([5, 6], [-100, 6]), sample([7, 8, 9], [-100, 8, 9]))
    assert sample_ranges(row, StoredBoundaries()) == [(0, 2), (2, 5)]
    assert sample_ranges(sample([5, 9, 7, 9, PAD], [-100, 9, -100, 9, -100]), EndOfDocument((9,), learnt=False)) == [
        (0, 2),
        (2, 4),
    ]


def test_a_row_that_is_too_long_keeps_the_end_of_each_sample() -> None:
    long = [sample(range(10, 50), [-100] * 30 + list(range(40, 50))) for _ in range(3)]
    row = row_of(*long)
    cut = shortened(row, StoredBoundaries(), 60)
    assert [stop - start for start, stop in sample_ranges(cut, StoredBoundaries())] == [20, 20, 20]
    assert (
        cut.input_ids.tolist() == list(range(30, 50)) * 3 and cut.labels.tolist() == long[0].labels[-20:].tolist() * 3
    )
    whole = shortened(row, StoredBoundaries(), 120)
    assert whole.input_ids.tolist() == row.input_ids[:-2].tolist()
    many = shortened(row_of(*long * 20), StoredBoundaries(), 160)
    assert [stop - start for start, stop in sample_ranges(many, StoredBoundaries())] == [10] * 16


@pytest.mark.parametrize("restart", [True, False])
def test_a_trial(restart: bool) -> None:
    mode = Packed(64, PAD, StoredBoundaries(), reset_position_ids=restart)
    trials = make_trials(rows(3), StoredBoundaries(), mode, micro_batch_size=2, multiple=4)
    assert [len(trial.parts) for trial in trials] == [6, 3]
    trial = trials[0]
    batch, part = trial.batch, trial.parts[4]
    assert part.name == "row 1 sample 2" and part.row == 1
    assert batch.tokens.shape[1] % 4 == 0 and int(batch.tokens.max()) < len(trial.vocabulary)
    here = slice(part.start, part.stop)
    assert trial.vocabulary[batch.tokens[1, here]].tolist() == part.sample.input_ids.tolist()
    only, others = trial.learning([part]).loss_mask, trial.learning(trial.others(part)).loss_mask
    assert only.sum() == only[1, here].sum() > 0 and (only + others == batch.loss_mask).all()
    poisoned = trial.poisoned(part)
    changed = poisoned.tokens != batch.tokens
    assert changed[1, here].all() and changed.sum() == len(part.sample) and (poisoned.loss_mask == others).all()
    alone = trial.alone(part)
    assert alone.boundaries is None and alone.loss_mask.sum() == only.sum()
    length = len(part.sample)
    assert alone.position_ids[0, :length].tolist() == batch.position_ids[1, here].tolist()
    learnt = alone.loss_mask[0, :length] > 0
    assert (alone.labels[0, :length][learnt] == batch.labels[1, here][learnt]).all()


def test_samples_alone_weigh_what_they_weigh_packed() -> None:
    mode = Packed(64, PAD, StoredBoundaries(), loss_reduction="sample")
    trial = make_trials(rows(2), StoredBoundaries(), mode, micro_batch_size=2, multiple=4)[0]
    for part in trial.parts:
        packed = trial.batch.loss_mask[part.row, part.start : part.stop]
        assert float(packed.sum()) == pytest.approx(1)
        assert torch.equal(packed, trial.alone(part).loss_mask[0, : len(packed)])


def test_samples_that_look_like_none() -> None:
    opening = list(range(10, 18))
    one = sample([*opening, 30, 31, 32], [-100] * 10 + [32])
    two = sample([*opening, 30, *opening, 31], [-100] * 17 + [31])
    assert not looks_like_several(one) and looks_like_several(two)
    assert not looks_like_several(sample([1], [1]))
    assert learns_nothing(sample([1, 2], [1, -100])) and not learns_nothing(one)
