"""What a packed row costs, from its boundaries and from the index that it was made by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mindspeed_ift.data.boundaries import StoredBoundaries
from mindspeed_ift.data.costs import attention_costs
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.pack_index import build_index
from mindspeed_ift.data.packed_view import PackedView
from mindspeed_ift.data.packing import PackRules
from tests.tiny_dataset import random_sample, sample, write_dataset


def test_squares_of_segments_pads_included(tmp_path: Path) -> None:
    segments = [[1, 1, 1, 2, 2, 0], [1, 2, 3, 4, 5, 0], [1, 1, 1, 1, 1, 1]]
    rows = [sample([5] * 6, [-100] * 6, one) for one in segments]
    dataset = InstructionDataset(write_dataset(tmp_path / "data", rows))
    assert attention_costs(dataset, StoredBoundaries(), range(3)).tolist() == [9 + 4 + 1, 6, 36]
    assert attention_costs(dataset, StoredBoundaries(), range(1, 2)).tolist() == [6]


@pytest.mark.parametrize("multiple", [1, 8])
def test_an_index_knows_the_costs_without_the_rows(tmp_path: Path, multiple: int) -> None:
    random = np.random.default_rng(0)
    rows = [random_sample(random, turns, longest=20) for turns in [1, 2, 3] * 20]
    dataset = InstructionDataset(write_dataset(tmp_path / "data", rows))
    view = PackedView(dataset, build_index(dataset, PackRules(128, multiple=multiple)), pad_id=0)
    found = attention_costs(view, StoredBoundaries(), range(2, len(view)))
    expected = [
        sum(float(np.sum(view[row].segments == one)) ** 2 for one in range(view[row].segments.max() + 1))
        for row in range(2, len(view))
    ]
    assert found.tolist() == expected
