"""Who takes which sample at which step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.batch import FixedLength, Packed
from mindspeed_ift.data.boundaries import StoredBoundaries
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.micro_batches import MicroBatches
from mindspeed_ift.data.order import SampleOrder
from mindspeed_ift.data.overlong import Overlong
from tests.tiny_dataset import sample, write_dataset

MODE = FixedLength(4, 0)


@pytest.fixture
def dataset(tmp_path: Path) -> InstructionDataset:
    """20 samples; the first token of each is its number."""
    rows = [sample([number, 1, 2], [-100, 1, 2]) for number in range(20)]
    return InstructionDataset(write_dataset(tmp_path / "data", rows))


def taken(source: MicroBatches, consumed: int, count: int) -> list[list[int]]:
    """Sample numbers a micro-batch."""
    return [batch.tokens[:, 0].tolist() for batch in source.take(consumed, count)]


def test_the_order_of_the_formula(dataset: InstructionDataset) -> None:
    order = SampleOrder(20, seed=0, shuffle=False)
    ranks = [MicroBatches(dataset, range(20), order, MODE, 2, rank, 2) for rank in range(2)]
    assert taken(ranks[0], 4, 2) == [[4, 5], [8, 9]] and taken(ranks[1], 4, 2) == [[6, 7], [10, 11]]


@pytest.mark.parametrize(("data_size", "micro_batch"), [(1, 1), (1, 4), (2, 2), (4, 1)])
def test_each_sample_once_an_epoch_whatever_the_split(
    dataset: InstructionDataset, data_size: int, micro_batch: int
) -> None:
    """Global batch 4 over samples 4..19: four steps are an epoch, and each step holds the same samples."""
    sample_range = range(4, 20)
    steps = []
    for consumed in range(0, 16, 4):
        step: list[int] = []
        for rank in range(data_size):
            order = SampleOrder(16, seed=5)
            source = MicroBatches(dataset, sample_range, order, MODE, micro_batch, rank, data_size)
            step += sum(taken(source, consumed, 4 // (micro_batch * data_size)), [])
        steps.append(sorted(step))
    assert sorted(sum(steps, [])) == list(sample_range)
    order = SampleOrder(16, seed=5)
    assert steps[2] == sorted(sample_range[order.index(position)] for position in range(8, 12))


def test_resuming_takes_the_same_samples(dataset: InstructionDataset) -> None:
    """Over the end of an epoch too: 20 samples, batches of 6."""
    whole = MicroBatches(dataset, range(20), SampleOrder(20, seed=2), MODE, 3)
    uninterrupted = [taken(whole, consumed, 2) for consumed in range(0, 60, 6)]
    fresh = MicroBatches(dataset, range(20), SampleOrder(20, seed=2), MODE, 3)
    assert [taken(fresh, consumed, 2) for consumed in range(30, 60, 6)] == uninterrupted[5:]
    assert all(len(batch) == 3 for step in uninterrupted for batch in step)


def test_a_micro_batch_larger_than_the_data(dataset: InstructionDataset) -> None:
    source = MicroBatches(dataset, range(2), SampleOrder(2, 0, shuffle=False), MODE, 5)
    assert taken(source, 0, 1) == [[0, 1, 0, 1, 0]]


def test_overlong_samples(tmp_path: Path) -> None:
    rows = [sample([1, 2], [-100, 2]), sample([1, 2, 3, 4, 5, 6], [-100, -100, -100, 4, 5, 6])]
    dataset = InstructionDataset(write_dataset(tmp_path / "data", rows))
    order = SampleOrder(2, 0, shuffle=False)
    turns = MicroBatches(dataset, range(2), order, MODE, 2).take(0, 1)[0]
    assert turns.tokens[1].tolist() == [1, 2, 4, 5]
    end = MicroBatches(dataset, range(2), order, MODE, 2, overlong=Overlong.CUT_END).take(0, 1)[0]
    assert end.tokens[1].tolist() == [1, 2, 3, 4] and torch.equal(end.tokens[0], turns.tokens[0])
    with pytest.raises(UserError, match="sample 1 has 6 tokens, more than --seq-length 4 .* --no-cut-token"):
        MicroBatches(dataset, range(2), order, MODE, 2, overlong=Overlong.REFUSE)
    with pytest.raises(UserError, match="sample 1 has 6 tokens, .* a packed row cannot be cut"):
        MicroBatches(dataset, range(2), order, Packed(4, 0, StoredBoundaries()), 2)
    MicroBatches(dataset, range(1), SampleOrder(1, 0), Packed(4, 0, StoredBoundaries()), 2)


def test_order_of_another_range(dataset: InstructionDataset) -> None:
    with pytest.raises(UserError, match="an order over 3 samples does not fit 20"):
        MicroBatches(dataset, range(20), SampleOrder(3, 0), MODE, 1)
