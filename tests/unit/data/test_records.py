"""The same records from every kind of file; what cannot be read is named."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data import records as records_module
from mindspeed_ift.data.inputs import find_files
from mindspeed_ift.data.records import read_records

RECORDS = [{"instruction": f'ask {number}, "quoted"\nline', "output": "答" * number + "."} for number in range(5)]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    kind = path.suffix
    if kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif kind in (".arrow", ".feather"):
        table = pyarrow.Table.from_pylist(records)
        new = pyarrow.ipc.new_stream if kind == ".arrow" else pyarrow.ipc.new_file
        with pyarrow.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table)
    elif kind == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    elif kind == ".json":
        path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [record for record, _ in read_records(find_files(str(path)))]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather", "a.csv", "a.json", "a.jsonl"])
def test_every_kind(tmp_path: Path, name: str) -> None:
    assert read(write(tmp_path / name, RECORDS)) == RECORDS


def packed(content: bytes, suffix: str) -> bytes:
    return gzip.compress(content) if suffix == ".gz" else pyarrow.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl", "a.txt"])
def test_every_kind_of_text_compressed(tmp_path: Path, name: str, suffix: str) -> None:
    expected = read(write(tmp_path / name, RECORDS))
    content = (tmp_path / name).read_bytes()
    half = len(content) // 2
    # Two frames in a row, as a log that is appended to has them.
    file = tmp_path / (name + suffix)
    file.write_bytes(packed(content[:half], suffix) + packed(content[half:], suffix))
    assert len(expected) == len(RECORDS) and read(file) == expected


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_is_cut_or_is_none_is_named(tmp_path: Path, suffix: str) -> None:
    content = "".join(json.dumps({"n": number, "x": str(hash(str(number)))}) + "\n" for number in range(9000)).encode()
    file = tmp_path / f"a.jsonl{suffix}"
    for bad, said in ((packed(content, suffix)[:-300], "Truncated compressed stream"), (content, "failed")):
        file.write_bytes(bad)
        with pytest.raises(UserError, match=f"a.jsonl{suffix} cannot be read near record [0-9]+ .*{said}") as caught:
            read(file)
        assert "\n" not in str(caught.value)


def test_lines_of_text_without_empty_ones(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n  \ntwo \n")
    assert read(tmp_path / "a.txt") == [{"text": "one"}, {"text": "two "}]


def test_json_in_all_its_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "_BLOCK", 7)
    file = tmp_path / "a.json"
    for text in (
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=4),
        "\n".join(map(json.dumps, RECORDS)),
        "\ufeff " + json.dumps(RECORDS, ensure_ascii=False),
        "\n\n".join(json.dumps(r, indent=2) for r in RECORDS),
    ):
        file.write_text(text, encoding="utf-8")
        assert read(file) == RECORDS
    file.write_text("[]")
    assert read(file) == []
    file.write_text("")
    assert read(file) == []


def test_origins_name_file_and_record(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", RECORDS)
    assert [str(origin) for _, origin in read_records([file])][:2] == [f"{file}:1", f"{file}:2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("a.json", b'[{"a": 1}, {"a": ', r"record 2 is not JSON \(.* at character 7 of it\); the file ends within it"),
        ("a.json", b'[{"a": 1}, {"a" 2}, {"a": 3}]', r"record 2 is not JSON \(.* at character 6 of it\); mend"),
        ("a.json", b'[{"a": 1}', "without closing its array"),
        ("a.json", b'[{"a": 1}] {"b": 2}', "goes on after its array"),
        ("a.json", b'["text"]', "a.json:1 is not an object but text"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "line 3 has 3 cells"),
        ("a.parquet", b"no parquet", "cannot be read as parquet"),
        ("a.arrow", b"no arrow at all", "cannot be read as arrow"),
        ("a.jsonl", b'{"a": "\xff"}\n', "not UTF-8"),
        ("a.csv", b"a,b,a\n1,2,3\n", "has two columns called 'a'"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "line 1 is not JSON"),
        ("a.json", b"[" * 100_000, "record 1 is not JSON"),
        ("a.xlsx", b"", "of no known kind; --input takes parquet"),
        ("a.parquet.gz", b"", "of no known kind; --input takes parquet"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_an_empty_cell_is_null(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n,x\n")
    assert read(tmp_path / "a.csv") == [{"a": None, "b": "x"}]
