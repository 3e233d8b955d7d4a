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
from mindspeed_ift.data.preprocess import preprocess
from mindspeed_ift.data.records import find_datasets, find_files, read_records
from tests.tiny_tokenizer import make_tiny_tokenizer

GOOD = {"instruction": "q", "output": "a"}
ALPACA, CHAT, CALLS = "instruction", "conversations", "messages"
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


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(tmp_path_factory.mktemp("tiny"))


def lines(*records: Any) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


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


def kept_and_dropped(
    content: bytes, name: str, tokenizer: Path, folder: Path, **options: Any
) -> tuple[int, dict[str, int]]:
    (folder / name).write_bytes(content)
    config = PreprocessConfig(
        input=str(folder / name),
        output_prefix=str(folder / "out" / "data"),
        tokenizer_name_or_path=str(tokenizer),
        **{"prompt_type": "qwen3", **options},
    )
    ledger = preprocess(config, report=lambda line: None).ledger
    return ledger.kept, {reason: tally.count for reason, tally in ledger.dropped.items()}


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


def talk(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"conversations": list(messages), **more}


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
DEEP = "[" * 100_000 + "]" * 100_000
HALF = "\ud83d"
CUT = "its text is cut within a character (half of a surrogate pair)"

SENSELESS: dict[str, tuple[dict[str, Any], str | None]] = {
    "no answer": ({"instruction": "q", "output": None}, "'output' is missing or null"),
    "number for a question": ({"instruction": 5, "output": "a"}, "'instruction' is not text"),
    "truth for a question": ({"instruction": True, "output": "a"}, "'instruction' is not text"),
    "list for an answer": ({"instruction": "q", "output": [1]}, "'output' is not text"),
    "object for a question": ({"instruction": {"a": 1}, "output": "a"}, "'instruction' is not text"),
    "half a character in a question": ({"instruction": HALF, "output": "a"}, CUT),
    "half a character in an answer": ({"instruction": "q", "output": "好" + HALF}, CUT),
    "null messages": (talk(None), "'conversations' is not a list of messages"),
    "messages as an object": (talk() | {"conversations": {"a": 1}}, "'conversations' is not a list of messages"),
    "messages as text": (talk() | {"conversations": "x"}, "'conversations' is not a list of messages"),
    "an empty message": (talk({}), "unknown or misplaced role 'None'"),
    "a null message": (talk({"from": None, "value": None}), "unknown or misplaced role 'None'"),
    "a list for a role": (talk({"from": ["human"], "value": "q"}, GPT), "unknown or misplaced role \"['human']\""),
    "an object for a role": (talk({"from": {"a": 1}, "value": "q"}, GPT), "unknown or misplaced role \"{'a': 1}\""),
    "half a character for a role": (talk({"from": HALF, "value": "q"}, GPT), r"unknown or misplaced role '\ud83d'"),
    "half a character in a talk": (talk({"from": "human", "value": HALF}, GPT), CUT),
    "half a character in the tools": (talk(HUMAN, GPT, tools=[{"name": HALF, "parameters": {}}]), CUT),
    "half a character in tools as text": (talk(HUMAN, GPT, tools=json.dumps([{"name": HALF}])), CUT),
    "a number for tools": (talk(HUMAN, GPT, tools=5), "the description of the tools is not a list of objects"),
    "tools that are numbers": (talk(HUMAN, GPT, tools=[5]), "the description of the tools is not a list of objects"),
    "deep tools": (talk(HUMAN, GPT, tools=DEEP), "the description of the tools is not JSON"),
    "a deep call": (
        talk(HUMAN, {"from": "function_call", "value": f'{{"name": "f", "arguments": {DEEP}}}'}),
        "a function call is not JSON",
    ),
    "null content": (chat({"role": "user", "content": None}, ASSISTANT), "a message has no text"),
    "null parts": (
        chat({"role": "user", "content": [None]}, ASSISTANT),
        "a message holds more than text, thoughts and calls",
    ),
    "a list for the kind of a part": (
        chat({"role": "user", "content": [{"type": ["text"], "text": "q"}]}, ASSISTANT),
        "a message holds more than text, thoughts and calls",
    ),
    "a number for calls": (chat(USER, {"role": "assistant", "tool_calls": 5}), "'tool_calls' is not a list"),
    "an object for calls": (chat(USER, {"role": "assistant", "tool_calls": {"a": 1}}), "'tool_calls' is not a list"),
    "a number for calls beside parts": (
        chat(USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}], "tool_calls": 5}),
        "'tool_calls' is not a list",
    ),
    "null calls": (
        chat(USER, {"role": "assistant", "tool_calls": [None]}),
        "a function call has no name or no arguments",
    ),
    "deep arguments": (
        chat(USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": DEEP}}]}),
        "a function call is not JSON",
    ),
    "a number for a thought": (
        chat(USER, {"role": "assistant", "content": "a", "reasoning_content": 5}),
        "a thought is not text",
    ),
}


@pytest.mark.parametrize("prompt_type", ["qwen", "qwen3", "mistral"])
@pytest.mark.parametrize("case", SENSELESS)
def test_a_senseless_record_is_counted(case: str, prompt_type: str, tokenizer: Path, tmp_path: Path) -> None:
    record, reason = SENSELESS[case]
    good = (
        GOOD
        if "instruction" in record
        else talk(HUMAN, GPT, tools="")
        if "conversations" in record
        else chat(USER, ASSISTANT)
    )
    kept, dropped = kept_and_dropped(
        lines(*[good] * 40, record, good), "a.jsonl", tokenizer, tmp_path, prompt_type=prompt_type
    )
    if prompt_type == "qwen" and ("tools" in case or case == "a deep call"):
        # LLaMA-Factory 0.8.2 reads some of these as no tools at all.
        assert kept + sum(dropped.values()) == 42 and set(dropped) <= {reason, None}, dropped
    else:
        assert (kept, dropped) == (41, {reason: 1})


def test_half_a_character_of_plain_text_is_counted(tokenizer: Path, tmp_path: Path) -> None:
    records = lines(*[{"text": "a"}] * 40, {"text": HALF})
    assert kept_and_dropped(records, "a.jsonl", tokenizer, tmp_path) == (40, {CUT: 1})


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


@pytest.mark.parametrize("workers", [1, 2])
def test_deep_nesting_in_a_column_that_is_not_read(workers: int, tokenizer: Path, tmp_path: Path) -> None:
    """JSON reads a thousand levels, but handing a record to another process takes two steps for each."""
    record = b'{"instruction": "q", "output": "a", "raw": ' + b"[" * 900 + b"]" * 900 + b"}\n"
    assert kept_and_dropped(record * 3, "a.jsonl", tokenizer, tmp_path, workers=workers) == (3, {})
