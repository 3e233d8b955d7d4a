"""Samples longer than a row: what stays of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.encode import split_balanced
from mindspeed_ift.data.overlong import Overlong, count_overlong, cut_sample, refuse_overlong
from tests.tiny_dataset import random_sample, sample, write_dataset

TWO_TURNS = sample(range(1, 13), [-100, -100, 3, 4, 5, 6, -100, -100, -100, -100, 11, 12])


def test_a_sample_that_fits_stays() -> None:
    assert cut_sample(TWO_TURNS, 12, Overlong.CUT_TURNS) is TWO_TURNS


def test_cut_at_the_end() -> None:
    cut = cut_sample(TWO_TURNS, 5, Overlong.CUT_END)
    assert cut.input_ids.tolist() == [1, 2, 3, 4, 5] and cut.labels.tolist() == [-100, -100, 3, 4, 5]


@pytest.mark.parametrize(
    ("room", "ids"),
    [
        (11, [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12]),
        (8, [1, 2, 3, 4, 5, 6, 7]),
        (5, [1, 2, 3, 4, 5]),
        (3, [1, 3, 4]),
        (1, [1]),
    ],
)
def test_cut_turn_by_turn(room: int, ids: list[int]) -> None:
    cut = cut_sample(TWO_TURNS, room, Overlong.CUT_TURNS)
    assert cut.input_ids.tolist()[: len(ids)] == ids and len(cut) <= room
    assert cut.labels.tolist() == [TWO_TURNS.labels[number - 1] for number in cut.input_ids]


@pytest.mark.parametrize("seed", range(20))
def test_the_rule_of_llama_factory(seed: int) -> None:
    """Against the rule written out with a loop over turns."""
    generator = np.random.default_rng(seed)
    turns = [random_sample(generator, 1, 9) for _ in range(4)]
    whole = sample(np.concatenate([turn.input_ids for turn in turns]), np.concatenate([turn.labels for turn in turns]))
    for room in range(1, len(whole)):
        expected: list[int] = []
        for turn in turns:
            if len(expected) >= room:
                break
            prompt = int((turn.labels == -100).sum())
            source, target = split_balanced(prompt, len(turn) - prompt, room - len(expected))
            expected += [*turn.input_ids[:source], *turn.input_ids[prompt : prompt + target]]
        cut = cut_sample(whole, room, Overlong.CUT_TURNS)
        assert cut.input_ids.tolist() == expected and len(cut.labels) == len(expected) <= room


@pytest.mark.parametrize("labels", [[1, 2, -100, 4, 5], [1, 2, 3, -100, -100], [-100] * 5, [1, 2, 3, 4, 5]])
def test_samples_that_begin_learnt_or_end_unlearnt(labels: list[int]) -> None:
    for room in range(1, 5):
        cut = cut_sample(sample(range(1, 6), labels), room, Overlong.CUT_TURNS)
        assert 1 <= len(cut) <= room and cut.labels.tolist() == [labels[number - 1] for number in cut.input_ids]


def test_count_and_refuse(tmp_path: Path) -> None:
    rows = [sample([1] * length, [1] * length) for length in (3, 9, 2, 7)]
    dataset = InstructionDataset(write_dataset(tmp_path / "data", rows))
    assert count_overlong(dataset, range(4), 6) == 2 and count_overlong(dataset, range(2, 4), 6) == 1
    refuse_overlong(dataset, range(2, 4), 7, "")
    with pytest.raises(UserError, match="sample 3 has 7 tokens, more than --seq-length 6 .1 such .* 7.; do so"):
        refuse_overlong(dataset, range(2, 4), 6, "do so")
