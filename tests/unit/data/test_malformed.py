"""A fuzz of damaged files and senseless records: one clear line and exit code 2, or a counted drop; nothing is left."""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.preprocess import main
from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data import records
from mindspeed_ift.data.inputs import find_datasets, find_files
from mindspeed_ift.data.preprocess import preprocess
from mindspeed_ift.data.records import read_records
from tests.preparing import GOOD, kept_and_dropped, lines

SECONDS = 60
"""Nothing here takes a tenth of it; a test that hangs fails instead."""


@pytest.fixture(autouse=True)
def never_hangs() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise AssertionError("still not done")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def parquet(table: pyarrow.Table) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def arrow(table: pyarrow.Table, new: Any = pyarrow.ipc.new_stream) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


TABLE = pyarrow.Table.from_pylist([GOOD] * 50)
TWICE = pyarrow.table([["q"], ["a"], ["b"]], names=["instruction", "output", "output"])
PARQUET, STREAM, FILE = parquet(TABLE), arrow(TABLE), arrow(TABLE, pyarrow.ipc.new_file)
LONG = b"one two three " * 3_500_000

PACKED, ZSTD = gzip.compress(lines(GOOD) * 2000), pyarrow.compress(lines(GOOD) * 2000, codec="zstd", asbytes=True)

UNREADABLE: dict[str, tuple[bytes, str]] = {
    "half.jsonl.gz": (PACKED[: len(PACKED) // 2], "cannot be read near record"),
    "almost.jsonl.gz": (PACKED[:-9], "cannot be read near record"),
    "sum.jsonl.gz": (PACKED[:-8] + bytes(8), "cannot be read near record"),
    "wrong.jsonl.gz": (PACKED[:50] + b"\xff" * 4 + PACKED[54:], "cannot be read near record"),
    "behind.jsonl.gz": (PACKED + b"more", "cannot be read near record"),
    "plain.jsonl.gz": (lines(GOOD), "cannot be read near record"),
    "half.jsonl.zst": (ZSTD[: len(ZSTD) // 2], "cannot be read near record"),
    "almost.jsonl.zst": (ZSTD[:-1], "cannot be read near record"),
    "wrong.jsonl.zst": (ZSTD[:10] + b"\xff" * 4 + ZSTD[14:], "cannot be read near record"),
    "plain.jsonl.zst": (lines(GOOD), "cannot be read near record"),
    "empty.jsonl.gz": (b"", "no records in"),
    "endless.jsonl.gz": (gzip.compress(b'{"instruction": "' + b" " * 30_000_000), "line 1 is not JSON"),
    "half.parquet": (PARQUET[: len(PARQUET) // 2], "cannot be read as parquet"),
    "end.parquet": (PARQUET[-200:], "cannot be read as parquet"),
    "mark.parquet": (b"PAR1PAR1", "cannot be read as parquet"),
    "empty.parquet": (b"", "cannot be read as parquet"),
    "zeros.parquet": (b"PAR1" + bytes(200) + b"PAR1", "cannot be read near record 1"),
    "values.parquet": (PARQUET[:20] + b"\xff" * 40 + PARQUET[60:], "cannot be read near record 1"),
    "twice.parquet": (parquet(TWICE), "two columns called 'output'"),
    "pointer.parquet": (b"version https://git-lfs.github.com/spec/v1\n", "cannot be read as parquet"),
    "half.arrow": (STREAM[: len(STREAM) // 2], "cannot be read"),
    "half.feather": (FILE[: len(FILE) // 2], "cannot be read"),
    "batch.arrow": (arrow(TABLE)[:-8], "it was cut"),
    "empty.arrow": (b"", "cannot be read"),
    "twice.arrow": (arrow(TWICE), "two columns called 'output'"),
    "latin.jsonl": (b'{"instruction": "caf\xe9", "output": "a"}\n', "not UTF-8 text near record 1"),
    "late.jsonl": (lines(GOOD) * 3000 + b'{"instruction": "\xc3"}\n', "not UTF-8 text near record"),
    "latin.csv": (b"instruction,output\ncaf\xe9,a\n", "not UTF-8"),
    "wide.json": (json.dumps([GOOD]).encode("utf-16"), "not UTF-8"),
    "noise.json": (bytes(range(128, 256)) * 9, "not UTF-8"),
    "empty.json": (b"", "no records in"),
    "blank.jsonl": (b" \n\n", "no records in"),
    "empty.csv": (b"", "no records in"),
    "header.csv": (b"instruction,output\n", "no records in"),
    "mark.json": (b"\xef\xbb\xbf", "no records in"),
    "null.json": (b"null", "is not an object but null"),
    "number.json": (b"5", "is not an object but a number"),
    "list.json": (b"[[[]]]", "is not an object but a list"),
    "open.json": (b"[", "without closing its array"),
    "close.json": (b"]", "is not JSON"),
    "page.json": (b"<!DOCTYPE html><html></html>", "is not JSON"),
    "columns.json": (b'{"instruction": ["a"], "output": ["b"]}', "'instruction' is not text"),
    "nothing.jsonl": (lines({}, {}), "of no known form"),
    "python.jsonl": (b"{'instruction': 'q', 'output': 'a'}\n", "line 1 is not JSON"),
    "comma.jsonl": (b'{"instruction": "q", "output": "a"},\n', "line 1 is not JSON"),
    "digits.jsonl": (b'{"instruction": "q", "n": ' + b"9" * 5000 + b"}\n", "line 1 is not JSON"),
    "twice.jsonl": (b'{"instruction": "q", "output": "a", "output": "b"}\n', "the key 'output' stands twice"),
    "twice.json": (b'[{"instruction": "q", "output": {"a": 1, "a": 2}}]', "the key 'a' stands twice"),
    "middle.json": (b'[{"instruction": "q" "output": "a"},' + b" " * 30_000_000, "record 1 is not JSON"),
    "zeros.jsonl": (bytes(1000), "line 1 is not JSON"),
    "tail.jsonl": (lines(GOOD) + bytes(4096), "line 2 is not JSON"),
    "mark_within.jsonl": (lines(GOOD) + b"\xef\xbb\xbf" + lines(GOOD), "line 2 is not JSON"),
    "deep.json": (b"[" * 100_000, "is not JSON|not an object but a list"),
    "deep.jsonl": (b'{"instruction": ' * 100_000, "line 1 is not JSON"),
    "endless.jsonl": (b'{"instruction": "q", "output": "' + LONG, "line 1 is not JSON"),
    "endless.json": (b'[{"instruction": "q", "output": "' + LONG, "record 1 is not JSON"),
    "endless.csv": (b'instruction,output\nq,"' + LONG, "is not csv"),
    "open.csv": (b'instruction,output\nq,a\nq,"a\nq,a\nq,a\n', "is not csv"),
    "after.csv": (b'instruction,output\n"q"x,a\n', "line 2 is not csv"),
    "names.csv": (b'"instruction,output\nq,a\n', "is not csv"),
    "short.csv": (b"instruction,output\nq\n", "line 2 has 1 cells"),
    "twice.csv": (b"instruction,output,output\nq,a,b\n", "'output'"),
}


def command(tokenizer: Path, given: str, out: Path, *more: str) -> list[str]:
    paths = ["--input", given, "--output-prefix", str(out / "data"), "--tokenizer-name-or-path", str(tokenizer)]
    return [*paths, "--prompt-type", "qwen3", *more]


def refused(arguments: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that must fail and leave nothing."""
    with pytest.raises(SystemExit) as stop:
        run(main, arguments)
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    assert said.startswith("error: ") and said.count("\n") == 1 and len(said) < 1000, said
    assert not out.exists() or not list(out.iterdir())
    return said


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_damaged_file_is_named(
    name: str, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    said = refused(command(tokenizer, str(tmp_path / name), tmp_path / "out"), tmp_path / "out", capsys)
    assert name in said and any(part in said for part in message.split("|")), said


READABLE: dict[str, tuple[bytes, int]] = {
    "mark.jsonl": (b"\xef\xbb\xbf" + lines(GOOD), 1),
    "mark.json": (b"\xef\xbb\xbf" + json.dumps([GOOD]).encode(), 1),
    "mark.csv": (b"\xef\xbb\xbfinstruction,output\r\nq,a\r\n", 1),
    "windows.jsonl": (lines(GOOD, GOOD).replace(b"\n", b"\r\n"), 2),
    "open_end.jsonl": (lines(GOOD, GOOD).rstrip(), 2),
    "zeros.jsonl": (lines({"instruction": "q\0", "output": "\0"}), 1),
    "line.jsonl": (lines({"instruction": "q", "output": LONG[:2_000_000].decode()}), 1),
    "two.jsonl.gz": (PACKED + PACKED, 4000),
    "two.jsonl.zst": (ZSTD + ZSTD, 4000),
    "infinite.jsonl": (b'{"instruction": "q", "output": "a", "n": 1e999999}\n', 1),
}


@pytest.mark.parametrize("name", READABLE)
def test_an_odd_file_is_read_whole(name: str, tokenizer: Path, tmp_path: Path) -> None:
    content, count = READABLE[name]
    assert kept_and_dropped(content, name, tokenizer, tmp_path) == (count, {})


def test_a_line_of_fifty_megabytes_is_a_record(tokenizer: Path, tmp_path: Path) -> None:
    """Beside columns that are not read, so that the line is long and the sample is not."""
    assert kept_and_dropped(lines({**GOOD, "raw": "x" * 50_000_000}, GOOD), "a.jsonl", tokenizer, tmp_path) == (2, {})


@pytest.mark.parametrize("content", [STREAM, FILE], ids=["stream", "file"])
def test_an_arrow_file_with_one_wrong_byte_ends_no_process(content: bytes, tokenizer: Path, tmp_path: Path) -> None:
    """Offsets that point outside of the file were read before: a segmentation fault."""
    refused_at = []
    for place in range(0, len(content), 29):
        file = tmp_path / "a.arrow"
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x5A]) + content[place + 1 :])
        try:
            assert len(list(read_records([file]))) <= 50
        except UserError as error:
            assert "\n" not in str(error)
            refused_at.append(place)
    assert refused_at


@pytest.mark.parametrize("name", ["folder.json", "loop.json", "pipe.json", "none.json"])
def test_what_is_no_file_is_named(
    name: str, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    os.mkfifo(tmp_path / "pipe.json")
    message = {
        "folder.json": "holds no data files",
        "loop.json": "no such file",
        "pipe.json": "no file but a pipe or a device",
        "none.json": "no such file",
    }[name]
    said = refused(command(tokenizer, str(tmp_path / name), tmp_path / "out"), tmp_path / "out", capsys)
    assert name in said and message in said


def test_only_the_files_of_a_folder_are_read(tokenizer: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "folder.json").mkdir(parents=True)
    (data / "loop.json").symlink_to(data / "loop.json")
    os.mkfifo(data / "pipe.json")
    (data / "good.jsonl").write_bytes(lines(GOOD))
    config = PreprocessConfig(
        input=str(data), output_prefix=str(tmp_path / "out" / "data"), tokenizer_name_or_path=str(tokenizer)
    )
    assert preprocess(config, report=lambda line: None).ledger.kept == 1


def test_links_in_a_circle_are_not_followed(tmp_path: Path) -> None:
    """Two of them double the paths at each step, forty steps deep."""
    (tmp_path / "inner" / ".hidden").mkdir(parents=True)
    for name in ("inner/a.jsonl", "b.jsonl", "inner/.hidden/c.jsonl", "inner/notes.md"):
        (tmp_path / name).write_bytes(lines(GOOD))
    for name in ("one", "two"):
        (tmp_path / "inner" / name).symlink_to(tmp_path)
    found = [tmp_path / "b.jsonl", tmp_path / "inner" / "a.jsonl"]
    assert find_files(str(tmp_path / "**" / "*.jsonl")) == found
    assert find_files(str(tmp_path / "inn*" / "**" / "*.jsonl")) == found[1:]


def test_a_long_list_of_files_is_no_name(tmp_path: Path) -> None:
    files = [tmp_path / f"part-{number:05}-with-a-long-name.jsonl" for number in range(200)]
    for file in files:
        file.write_bytes(lines(GOOD))
    assert [found for _, (found,) in find_datasets(",".join(map(str, files)))] == files


@pytest.mark.parametrize("name", [b"\xff\xfe.jsonl", b"a\nb.jsonl"])
def test_a_file_of_a_name_that_nothing_can_hold(
    name: bytes, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / os.fsdecode(name)
    file.write_bytes(lines(GOOD))
    said = refused(command(tokenizer, str(tmp_path / "*.jsonl"), tmp_path / "out"), tmp_path / "out", capsys)
    assert "rename it" in said


@pytest.mark.parametrize("given", ["x" * 5000, "~nobody-of-this-name/a.json", "a\0.json"])
def test_a_path_that_cannot_be(given: str, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(main, command(tokenizer, given, tmp_path / "out"))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "no such file" in said and said.count("\n") == 1


def test_a_large_file_is_read_no_further_than_its_first_error(tmp_path: Path) -> None:
    """What follows a broken record was read whole into memory, to see whether it goes on."""
    file = tmp_path / "a.json"
    file.write_bytes(b'[{"instruction": "q" "output": "a"}')
    with file.open("r+b") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(UserError, match="record 1 is not JSON"):
        list(read_records([file]))


@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_record_may_be_cut_anywhere_by_a_block(
    ascii_only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"a": 'é🎉\\n"', "b": [True, False, None, -1.5e-300, 123456789012345678901234567890], "c": {"d": {}}}
    text = json.dumps([record, record], ensure_ascii=ascii_only)
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    for size in range(1, len(text) + 1):
        monkeypatch.setattr(records, "_BLOCK", size)
        assert [found for found, _ in read_records([tmp_path / "a.json"])] == [record, record], size
