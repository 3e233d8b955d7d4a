"""Which files ``--input`` names."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.inputs import find_datasets, find_files


def test_folder_glob_and_list_are_sorted(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.csv"):
        (tmp_path / name).touch()
    (tmp_path / "README.md").write_text("no data")
    assert [file.name for file in find_files(str(tmp_path))] == ["a.jsonl", "b.jsonl", "c.csv"]
    assert [file.name for file in find_files(str(tmp_path / "*.jsonl"))] == ["a.jsonl", "b.jsonl"]
    several = (str(tmp_path / "c.csv"), f"{tmp_path / 'b.jsonl'}, {tmp_path / '*.jsonl'}")
    assert [[file.name for file in files] for _, files in find_datasets(several)] == [
        ["c.csv"],
        ["b.jsonl"],
        ["a.jsonl", "b.jsonl"],
    ]
    with pytest.raises(UserError, match="--input names no file"):
        find_datasets(" , ")


def test_a_folder_of_folders(tmp_path: Path) -> None:
    for name in ("data/b.jsonl", "data/a.jsonl.gz", ".cache/z.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert [file.name for file in find_files(str(tmp_path))] == ["a.jsonl.gz", "b.jsonl"]


def test_several_splits_in_a_folder_are_not_mixed(tmp_path: Path) -> None:
    for name in ("train-00000-of-00001.jsonl", "test.jsonl", "training_notes.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(
        UserError, match=r"several splits .test, train.; name one of them, for example --input .*/train"
    ):
        find_files(str(tmp_path))
    assert len(find_files(f"{tmp_path}/train-*")) == 1
    (tmp_path / "test.jsonl").unlink()
    assert len(find_files(str(tmp_path))) == 2


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file: .*none.json"):
        find_files(str(tmp_path / "none.json"))
    with pytest.raises(UserError, match="holds no data files"):
        find_files(str(tmp_path))


def test_a_folder_that_holds_a_dataset_too_is_read_without_it(tmp_path: Path) -> None:
    for name in ("in.jsonl", "out.manifest.json", "out.ledger.parquet", "out.shard-00000-of-00002.json"):
        (tmp_path / name).touch()
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/progress.json").touch()
    assert find_files(str(tmp_path)) == [tmp_path / "in.jsonl"]
    (tmp_path / "in.jsonl").unlink()
    with pytest.raises(UserError, match="holds no data files"):
        find_files(str(tmp_path))
