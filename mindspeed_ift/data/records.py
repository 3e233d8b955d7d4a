"""Files in, a stream of (record, origin) out: parquet, json, jsonl, csv, arrow, txt, the text ones gzip or zstd too.

Nothing is read as a whole: memory stays that of one block or row batch, whatever the file's size.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from mindspeed_ift.config.errors import UserError, first_line
from mindspeed_ift.data.hub import HubDataset

_BLOCK = 1 << 20
_ROWS = 1000
_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"
"""Ends arrow's stream form; without it a stream that was cut between two batches looks whole."""
_LARGEST_CELL = min(sys.maxsize, 2**31 - 1)
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_COMPRESSED_KINDS = (".json", ".jsonl", ".csv", ".txt")


class Origin(NamedTuple):
    """Where a record stands: the file, and its number within from 1."""

    file: str
    record: int

    def __str__(self) -> str:
        return f"{self.file}:{self.record}"


Record = dict[str, Any]


Readable = Path | HubDataset
"""What records are read from; its text names it."""


def kind_of(file: Path) -> str | None:
    """The key of `READERS` for a file, its compression aside; None where there is none."""
    suffix = file.suffix.lower()
    if suffix in _COMPRESSIONS:
        suffix = Path(file.stem).suffix.lower()
        return suffix if suffix in _COMPRESSED_KINDS else None
    return suffix if suffix in READERS else None


def known_kinds() -> str:
    """The kinds of files that are read, for messages."""
    kinds = ", ".join(suffix.lstrip(".") for suffix in READERS)
    return f"{kinds}, and {', '.join(suffix.lstrip('.') for suffix in _COMPRESSED_KINDS)} as .gz or .zst"


def read_records(files: Sequence[Readable]) -> Iterator[tuple[Record, Origin]]:
    """All records of the files, one after the other.

    Raises:
        UserError: A file cannot be read, or a record is no object; the message names file and record.
    """
    for file in files:
        number = 0
        try:
            for record in _read(file):
                number += 1
                if not isinstance(record, dict):
                    raise UserError(
                        f"{file}:{number} is not an object but {_kind(record)}; each record must be"
                        ' {"column": value, ...}'
                    )
                yield record, Origin(str(file), number)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file} is not UTF-8 text near record {number + 1} ({error.reason}); convert it first"
            ) from error
        except OSError as error:
            raise UserError(
                f"{file} cannot be read near record {number + 1} ({first_line(error)}); copy or convert it again"
            ) from error


def _read(source: Readable) -> Iterator[Any]:
    if isinstance(source, HubDataset):
        return source.read(_ROWS)
    kind = kind_of(source)
    assert kind is not None, "find_files refuses what it does not know"
    return READERS[kind](source)


def _open(file: Path, newline: str | None = None) -> TextIO:
    """A text file, unpacked as it is read."""
    compression = _COMPRESSIONS.get(file.suffix.lower())
    if compression is None:
        return file.open(encoding="utf-8-sig", newline=newline)
    import pyarrow

    unpacked = pyarrow.input_stream(str(file), compression=compression)
    return io.TextIOWrapper(unpacked, encoding="utf-8-sig", newline=newline)


def _kind(value: Any) -> str:
    return {
        list: "a list",
        str: "text",
        int: "a number",
        float: "a number",
        type(None): "null",
        bool: "true or false",
    }.get(type(value), "something else")


def _read_jsonl(file: Path) -> Iterator[Any]:
    with _open(file) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield _DECODER.decode(line)
            except (ValueError, RecursionError, _EqualKeys) as error:
                raise UserError(f"{file}: line {number} is not JSON ({error}); mend or remove it") from error


def _read_json(file: Path) -> Iterator[Any]:
    """An array of objects, or objects one after the other (lines, or pretty-printed); decoded as they come."""
    with _open(file) as stream:
        text, position, ended, number = stream.read(_BLOCK), 0, False, 0
        position = _skip(text, position)
        in_array = text.startswith("[", position)
        position += in_array
        while True:
            position = _skip(text, position, also="," if number else "")
            if in_array and text.startswith("]", position):
                if text[position + 1 :].strip() or stream.read(_BLOCK).strip():
                    raise UserError(f"{file} goes on after its array; keep one array, or one object a line as .jsonl")
                return
            if position < len(text):
                try:
                    record, position = _DECODER.raw_decode(text, position)
                    number += 1
                    yield record
                    continue
                except (RecursionError, _EqualKeys) as error:
                    raise UserError(f"{file}: record {number + 1} is not JSON ({error}); mend or remove it") from error
                except ValueError as error:
                    if ended or not _may_go_on(error, text):
                        raise UserError(f"{file}: record {number + 1} {_told(error, text, position)}") from error
            elif ended:
                if in_array:
                    raise UserError(
                        f"{file} ends after record {number} without closing its array: it was cut; copy it again"
                    )
                return
            # A record that does not end in this block: as much again, so that a huge one is tried a few times only.
            more = stream.read(max(_BLOCK, len(text) - position))
            text, position, ended = text[position:] + more, 0, not more


def _may_go_on(error: ValueError, text: str) -> bool:
    """Whether more text could mend it. An error in the middle is one, so that a large file is not read to its end."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.pos > len(text) - _LONGEST_WORD or error.msg.startswith("Unterminated string")


def _told(error: ValueError, text: str, start: int) -> str:
    """What is wrong with the record that starts there; the decoder counts from the beginning of a block of the file."""
    place = str(error)
    if isinstance(error, json.JSONDecodeError):
        place = f"{error.msg} at character {error.pos - start + 1} of it"
    remedy = "the file ends within it: copy it again" if _may_go_on(error, text) else "mend or remove it"
    return f"is not JSON ({place}); {remedy}"


class _EqualKeys(Exception):
    """An object of JSON with a key that stands twice: one of the values would be lost."""


def _object(pairs: list[tuple[str, Any]]) -> Record:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _EqualKeys(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in an object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_LONGEST_WORD = len(r"\ud83d\ude00")
"""What the decoder takes as one and may find cut: a literal, a number, a pair of escapes."""


def _skip(text: str, position: int, also: str = "") -> int:
    while position < len(text) and (text[position].isspace() or text[position] in also):
        position += 1
    return position


def _read_csv(file: Path) -> Iterator[Any]:
    """Rows under a line of column names; an empty cell is None, as in every other reader of csv data sets."""
    csv.field_size_limit(_LARGEST_CELL)
    with _open(file, newline="") as stream:
        # Strictly: a quote that is never closed would otherwise swallow the rest of the file into one cell.
        rows = csv.reader(stream, strict=True)
        try:
            columns = next(rows, [])
            _refuse_equal_names(columns, file)
            for row in rows:
                if not row:
                    continue
                if len(row) != len(columns):
                    raise UserError(
                        f"{file}: line {rows.line_num} has {len(row)} cells, the first line names {len(columns)}"
                        " columns; quote cells that hold commas"
                    )
                yield {name: cell or None for name, cell in zip(columns, row)}
        except csv.Error as error:
            raise UserError(f"{file}: line {rows.line_num} is not csv ({error}); mend it") from error


def _read_txt(file: Path) -> Iterator[Any]:
    """A record a line that is not empty."""
    with _open(file) as lines:
        for line in lines:
            if line.strip():
                yield {"text": line.rstrip("\n")}


def _read_parquet(file: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            _refuse_equal_names(table.schema_arrow.names, file)
            for batch in table.iter_batches(batch_size=_ROWS):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{file} cannot be read as parquet ({first_line(error)}); copy or write it again") from error


def _read_arrow(file: Path) -> Iterator[Any]:
    """Arrow's stream form (as `datasets` caches it) or file form (feather)."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as source:
            batches, is_file = arrow_batches(source)
            for batch in batches:
                # Offsets of a damaged file point anywhere: reading them unchecked would end the process.
                batch.validate(full=True)
                _refuse_equal_names(batch.schema.names, file)
                for start in range(0, batch.num_rows, _ROWS):
                    yield from batch.slice(start, _ROWS).to_pylist()
            if not is_file:
                source.seek(max(0, source.size() - len(_ARROW_END)))
                if source.read() != _ARROW_END:
                    raise UserError(f"{file} ends without arrow's end mark: it was cut; copy or write it again")
    except pyarrow.ArrowException as error:
        raise UserError(f"{file} cannot be read as arrow ({first_line(error)}); copy or write it again") from error


def arrow_batches(source: Any) -> tuple[Iterator[Any], bool]:
    """The batches of an open file of arrow's, and whether it is in file form."""
    import pyarrow

    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    if not is_file:
        return iter(pyarrow.ipc.open_stream(source)), False
    reader = pyarrow.ipc.open_file(source)
    return (reader.get_batch(number) for number in range(reader.num_record_batches)), True


def _refuse_equal_names(columns: Sequence[str], file: Path) -> None:
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{file} has two columns called '{twice}'; rename or remove one")


READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".parquet": _read_parquet,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
    ".txt": _read_txt,
}
"""Suffix -> reader of the file's records."""
