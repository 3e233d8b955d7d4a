"""Columns on disk: layout, checks on reading, all or nothing on writing."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import numpy as np
import pytest

from mindspeed_ift.config.errors import RunError, UserError
from mindspeed_ift.data import indexed
from mindspeed_ift.data.indexed import ColumnWriter, DatasetWriter, IndexedColumn, column_path, read_manifest


def write(prefix: Path, documents: list[list[int]]) -> str:
    with DatasetWriter(prefix, ["input_ids"]) as writer:
        for document in documents:
            writer.append({"input_ids": np.array(document, np.int32)}, np.array([len(document)], np.int32))
        writer.commit({"format": 1, "samples": len(documents)})
    return column_path(prefix, "input_ids")


def test_layout_and_round_trip(tmp_path: Path) -> None:
    documents = [[1, 2, 3], [4], [5, 6]]
    path = write(tmp_path / "sub" / "data", documents)
    expected = struct.pack("<9sQBQQ3i3q4q", b"MMIDIDX\0\0", 1, 4, 3, 4, 3, 1, 2, 0, 12, 16, 0, 1, 2, 3)
    assert Path(f"{path}.idx").read_bytes() == expected
    column = IndexedColumn(path)
    assert len(column) == 3 and [column[number].tolist() for number in range(3)] == documents
    assert column.lengths.tolist() == [3, 1, 2] and column[0].dtype == np.int32
    manifest = read_manifest(tmp_path / "sub" / "data")
    assert manifest["files"]["data_packed_input_ids_document.bin"]["bytes"] == 24
    assert not list(tmp_path.rglob("*.partial"))


def test_empty_dataset_can_be_read(tmp_path: Path) -> None:
    assert len(IndexedColumn(write(tmp_path / "data", []))) == 0


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        (".bin", lambda data: data[:-4], "do not belong together"),
        (".idx", lambda data: data[:-8], "it was cut or changed"),
        (".idx", lambda data: b"x" + data[1:], "not the index of a Megatron"),
        (".idx", lambda data: data[:9] + b"\x02" + data[10:], "index version 2"),
        (".idx", lambda data: data[:17] + b"\x07" + data[18:], "dtype code 7"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, suffix: str, change: object, message: str) -> None:
    file = Path(write(tmp_path / "data", [[1, 2], [3]]) + suffix)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=message):
        IndexedColumn(column_path(tmp_path / "data", "input_ids"))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such dataset file: .*none.idx"):
        IndexedColumn(tmp_path / "none")


def test_manifest_of_others(tmp_path: Path) -> None:
    assert read_manifest(tmp_path / "data") is None
    (tmp_path / "data.manifest.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match="not of format 1"):
        read_manifest(tmp_path / "data")


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), DatasetWriter(tmp_path / "data", ["input_ids"]) as writer:
        writer.append({"input_ids": np.zeros(2, np.int32)}, np.array([2]))
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_full_disk_is_one_line_and_keeps_the_old_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "data", [[1]])

    def full(self: ColumnWriter, values: np.ndarray, lengths: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(indexed.ColumnWriter, "append", full)
    with pytest.raises(RunError, match="no space left to write"):
        write(tmp_path / "data", [[2]])
    assert IndexedColumn(path)[0].tolist() == [1]
    assert not list(tmp_path.glob("*.partial"))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --output-prefix"):
        DatasetWriter(tmp_path / "file" / "data", ["input_ids"])
