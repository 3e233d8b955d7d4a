"""The samples of a refused step, for a person."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mindspeed_ift.data.batch import FixedLength
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.micro_batches import MicroBatches
from mindspeed_ift.data.order import SampleOrder
from mindspeed_ift.data.overlong import Overlong
from mindspeed_ift.training.refused import refused_path, write_refused
from tests.training_runs import make_datasets


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets and their tokenizer."""
    made = tmp_path_factory.mktemp("refused")
    make_datasets(made)
    return made


def of_rank(folder: Path, rank: int) -> MicroBatches:
    dataset = InstructionDataset(folder / "single")
    order = SampleOrder(len(dataset), 5, True)
    return MicroBatches(dataset, range(len(dataset)), order, FixedLength(40, 0), 2, rank, 2, Overlong.CUT_END)


def test_every_sample_of_the_global_batch_is_named_as_it_was_trained(folder: Path, tmp_path: Path) -> None:
    path = refused_path(tmp_path / "run", 7)
    write_refused(path, of_rank(folder, 1), 24, 2, {"tokenizer": None})
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [path.name] == [one.name for one in path.parent.iterdir()] == ["refused_step_7.jsonl"]
    places = [(one["data_rank"], one["micro_batch"], one["row"]) for one in records]
    assert places == [(rank, micro, row) for rank in range(2) for micro in range(2) for row in range(2)]
    dataset = InstructionDataset(folder / "single")
    for rank in range(2):
        batches = of_rank(folder, rank).take(24, 2)
        for record in (one for one in records if one["data_rank"] == rank):
            tokens = batches[record["micro_batch"]].tokens[record["row"]].tolist()
            assert tokens[: len(record["input_ids"])] == record["input_ids"] and len(record["input_ids"]) <= 40
            whole = dataset[record["sample"]]
            assert whole.input_ids.tolist()[: len(record["input_ids"])] == record["input_ids"]
            assert len(record["labels"]) == len(record["input_ids"])
            assert record["text"].startswith("<|im_start|>") and record["data_path"] == str(folder / "single")
    assert len({one["sample"] for one in records}) == 8


@pytest.mark.parametrize("moved", ["another", "gone"])
def test_without_its_tokenizer_ids_alone_are_written(folder: Path, tmp_path: Path, moved: str) -> None:
    training = of_rank(folder, 0)
    assert training.dataset.manifest is not None
    changed = {"tokenizer_sha256": "0"} if moved == "another" else {"tokenizer": str(tmp_path / "gone")}
    training.dataset.manifest |= changed
    write_refused(tmp_path / "samples.jsonl", training, 0, 1, {"tokenizer": None})
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text("utf-8").splitlines()]
    assert len(records) == 4 and all("text" not in one and one["input_ids"] for one in records)
