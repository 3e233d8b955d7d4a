"""A run goes on from a checkpoint with the data it was trained on, in the same order, or is told what differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.tuning import TuneConfig
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.sample import Sample
from mindspeed_ift.training.continuing import (
    KEY,
    OPTIMIZED,
    data_facts,
    fingerprint,
    optimizer_facts,
    refuse_other_data,
    refuse_other_rates,
)
from tests.tiny_dataset import sample, write_dataset

ROWS = [sample([number, number + 1, 9], [-100, number + 1, 9]) for number in range(200)]


def written(tmp_path: Path, rows: list[Sample]) -> InstructionDataset:
    return InstructionDataset(str(write_dataset(tmp_path / "data", rows)))


def facts(dataset: InstructionDataset, flags: str = "", template: str | None = "t") -> dict:
    return data_facts(parse(TuneConfig, flags.split(), program="test"), dataset, template)


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:-1],
        [*ROWS, ROWS[0]],
        [sample([0, 1], [-100, 1]), *ROWS[1:]],
        [sample([5, 1, 9], [-100, 1, 9]), *ROWS[1:]],
        [*ROWS[:-1], sample([199, 200, 9], [199, 200, 9])],
        [sample(one.input_ids, one.labels, [1, 2, 2]) for one in ROWS],
        ROWS[::-1],
    ],
    ids=["fewer", "more", "a length", "a token of the first", "a label of the last", "boundaries", "another order"],
)
def test_rebuilt_data_have_another_fingerprint(tmp_path: Path, rows: list[Sample]) -> None:
    one = fingerprint(written(tmp_path, ROWS))
    assert fingerprint(written(tmp_path, ROWS)) == one != fingerprint(written(tmp_path, rows))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--seed 1", "--seed 1234 -> 1"),
        ("--split 90,10,0", "--split 100,0,0 -> 90,10,0"),
        ("--no-shuffle", "--shuffle True -> False"),
        ("--seq-length 8", "--seq-length 4096 -> 8"),
        ("--reset-position-ids", "--reset-position-ids False -> True"),
        ("--loss-reduction sample", "--loss-reduction token -> sample"),
    ],
)
def test_what_decides_the_order_is_compared(tmp_path: Path, flags: str, told: str) -> None:
    dataset = written(tmp_path, ROWS)
    then = json.loads(json.dumps({KEY: facts(dataset)}))
    refuse_other_data(tmp_path, then, facts(dataset))
    with pytest.raises(UserError, match=f"{told}; give what it was trained with, --finetune .* or --no-check-data"):
        refuse_other_data(tmp_path, then, facts(dataset, flags))


def test_other_data_and_templates_are_told_together(tmp_path: Path) -> None:
    then = {KEY: facts(written(tmp_path, ROWS))}
    with pytest.raises(UserError, match="fingerprint of the data .* -> .*, samples 200 -> 150, template t -> other;"):
        refuse_other_data(tmp_path, then, facts(written(tmp_path, ROWS[:150]), template="other"))


def test_what_does_not_change_the_samples_may_change(tmp_path: Path) -> None:
    """The rate, the number of steps, the layout, how many samples a step takes, and where the data lie."""
    (tmp_path / "moved").mkdir()
    then = {KEY: facts(written(tmp_path, ROWS), "--lr 1e-3 --train-iters 5 --data-path a")}
    now = facts(written(tmp_path / "moved", ROWS), "--train-iters 9 --global-batch-size 4 --data-path b")
    refuse_other_data(tmp_path, then, now)


def test_older_checkpoints_do_not_say(tmp_path: Path) -> None:
    now = facts(written(tmp_path, ROWS))
    refuse_other_data(tmp_path, None, now)
    refuse_other_data(tmp_path, {}, now)
    refuse_other_data(tmp_path, {KEY: {"samples": 200}}, now)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--lr 2e-5", "--lr 1e-05 -> 2e-05"),
        ("--lr-decay-style cosine --adam-beta2 0.95", "--lr-decay-style linear -> cosine, --adam-beta2 0.999 -> 0.95"),
        ("--lr-warmup-fraction 0.1", "--lr-warmup-fraction None -> 0.1"),
    ],
)
def test_other_rates_are_told_with_the_way_out(tmp_path: Path, flags: str, told: str) -> None:
    def rates(words: str) -> dict:
        return optimizer_facts(parse(TuneConfig, words.split(), program="test"))

    then = json.loads(json.dumps({OPTIMIZED: rates("--train-iters 5")}))
    refuse_other_rates(tmp_path, then, rates("--train-iters 9 --global-batch-size 4"))
    refuse_other_rates(tmp_path, {}, rates(flags))
    with pytest.raises(UserError, match=f"other flags: {told}; give those of then, or --override-opt-param-scheduler"):
        refuse_other_rates(tmp_path, then, rates(flags))
