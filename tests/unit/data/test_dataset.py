"""Samples from disk, and what is refused at the start."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.indexed import DatasetWriter, column_path
from tests.tiny_dataset import random_sample, sample, write_dataset

ROWS = [sample([1, 2, 3], [-100, 2, 3]), sample([4, 5], [-100, 5])]


def replace_column(prefix: Path, column: str, documents: list[list[int]]) -> None:
    other = prefix.with_name("other column")
    with DatasetWriter(other, [column]) as writer:
        for document in documents:
            writer.append({column: np.array(document, np.int32)}, np.array([len(document)], np.int32))
        writer.commit({})
    for suffix in (".bin", ".idx"):
        shutil.move(column_path(other, column) + suffix, column_path(prefix, column) + suffix)


def test_round_trip(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    samples = [random_sample(generator, turns) for turns in (1, 2, 3)]
    dataset = InstructionDataset(write_dataset(tmp_path / "data", samples))
    assert len(dataset) == 3 and dataset.lengths.tolist() == [len(one) for one in samples]
    assert dataset.manifest is None and not dataset.has_segments
    for number, expected in enumerate(samples):
        read = dataset[number]
        assert read.input_ids.tolist() == expected.input_ids.tolist() and read.segments is None
        assert read.labels.tolist() == expected.labels.tolist()


@pytest.mark.parametrize("manifest", [None, {"neat_pack": True}])
def test_segments_are_found(tmp_path: Path, manifest: dict | None) -> None:
    row = sample([1, 2, 3, 0], [1, 2, 3, -100], [1, 2, 2, 0])
    dataset = InstructionDataset(write_dataset(tmp_path / "data", [ROWS[0], row], manifest))
    segments = dataset[1].segments
    assert dataset.has_segments and segments is not None and segments.tolist() == [1, 2, 2, 0]


def test_missing_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such dataset file: .*none_packed_input_ids_document.idx; .*run that first"):
        InstructionDataset(tmp_path / "none")
    with pytest.raises(UserError, match="no such dataset file"):
        InstructionDataset(tmp_path / "no folder" / "none")
    write_dataset(tmp_path / "other", ROWS)
    with pytest.raises(UserError, match="there is .*other"):
        InstructionDataset(tmp_path / "none")


@pytest.mark.parametrize(
    "end", ["_packed", "_packed_input_ids_document", "_packed_labels_document.bin", ".manifest.json"]
)
def test_path_beyond_the_prefix(tmp_path: Path, end: str) -> None:
    write_dataset(tmp_path / "data", ROWS)
    if end == "_packed":
        with pytest.raises(UserError, match="there is .*data$"):
            InstructionDataset(f"{tmp_path / 'data'}{end}")
        return
    with pytest.raises(UserError, match="give the path before _packed_: .*/data$"):
        InstructionDataset(f"{tmp_path / 'data'}{end}")


@pytest.mark.parametrize("column", ["labels", "attention_mask"])
def test_columns_of_different_runs(tmp_path: Path, column: str) -> None:
    prefix = write_dataset(tmp_path / "data", ROWS)
    replace_column(prefix, column, [[1, 2, 3]])
    with pytest.raises(UserError, match=f"{column} holds 1 samples and input_ids 2"):
        InstructionDataset(prefix)
    replace_column(prefix, column, [[1, 2, 3], [1, 2, 3]])
    with pytest.raises(UserError, match=f"sample 1 has 2 input_ids and 3 {column}"):
        InstructionDataset(prefix)


def test_empty_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no samples"):
        InstructionDataset(write_dataset(tmp_path / "data", []))


def test_files_other_than_the_manifest_says(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "data", ROWS, {})
    assert InstructionDataset(prefix).manifest is not None
    for column in ("input_ids", "labels", "attention_mask"):
        replace_column(prefix, column, [[1, 2, 3]])
    with pytest.raises(UserError, match="has 12 bytes, but .*data.manifest.json says 20"):
        InstructionDataset(prefix)


def test_a_dataset_under_another_name(tmp_path: Path) -> None:
    """Copied without its manifest it is one of unknown origin, and works."""
    prefix = write_dataset(tmp_path / "data", ROWS, {})
    for path in tmp_path.glob("data_packed_*"):
        shutil.copy(path, tmp_path / path.name.replace("data_", "copy_"))
    assert len(InstructionDataset(tmp_path / "copy")) == len(InstructionDataset(prefix))


def test_ids_that_fit(tmp_path: Path) -> None:
    InstructionDataset(write_dataset(tmp_path / "data", ROWS)).check_fits(6)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (sample([1, 6], [1, 2]), "input_ids_document: sample 2 holds 6, but the model has the token ids 0 to 5"),
        (sample([-1, 2], [1, 2]), "input_ids_document: sample 2 holds -1"),
        (sample([1, 2], [1, 6]), "labels_document: sample 2 holds 6"),
        (sample([1, 2], [1, -5]), "labels_document: sample 2 holds -5"),
    ],
)
@pytest.mark.parametrize("at_once", [1 << 20, 2])
def test_ids_that_do_not_fit(
    tmp_path: Path, bad: object, message: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mindspeed_ift.data.dataset._VALUES_AT_ONCE", at_once)
    dataset = InstructionDataset(write_dataset(tmp_path / "data", [*ROWS, bad, bad]))
    with pytest.raises(UserError, match=message):
        dataset.check_fits(6)
