"""Files in, a stream of (record, origin) out: parquet, json, jsonl, csv, arrow, txt; a file, a folder, a glob, a list.

Nothing is read as a whole: memory stays that of one block or row batch, whatever the file's size.
"""

from __future__ import annotations

import csv
import glob
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mindspeed_ift.config.errors import UserError

_BLOCK = 1 << 20
_ROWS = 1000
_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"
"""Ends arrow's stream form; without it a stream that was cut between two batches looks whole."""
_LARGEST_CELL = min(sys.maxsize, 2**31 - 1)


class Origin(NamedTuple):
    """Where a record stands: the file, and its number within from 1."""

    file: str
    record: int

    def __str__(self) -> str:
        return f"{self.file}:{self.record}"


Record = dict[str, Any]


def find_datasets(spec: str) -> list[tuple[str, list[Path]]]:
    """The datasets that ``--input`` names, in the order given, and the files of each: see `find_files`.

    Args:
        spec: A file, folder, glob, or several with commas between. A path that exists is taken as it is.

    Raises:
        UserError: Nothing is there, or a file is of no known kind.
    """
    parts = [spec] if Path(spec).expanduser().exists() else [part.strip() for part in spec.split(",") if part.strip()]
    if not parts:
        raise UserError("--input names no file; give a file, a folder, a glob, or several with commas between")
    return [(part, find_files(part)) for part in parts]


def find_files(part: str) -> list[Path]:
    """The data files of one dataset, a folder's and a glob's in sorted order of names.

    Args:
        part: A file, folder or glob.

    Raises:
        UserError: Nothing is there, or a file is of no known kind.
    """
    files = _files_of(Path(part).expanduser())
    for file in files:
        if file.suffix.lower() not in READERS:
            raise UserError(f"{file} is of no known kind; --input takes {_known_kinds()}")
    return files


def _files_of(path: Path) -> list[Path]:
    """The files of one file, folder or glob."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is no file but a pipe or a device, which would be read once only; write it to a file")
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in READERS)
        if not found:
            raise UserError(f"folder {path} holds no data files; --input takes {_known_kinds()}")
    elif path.exists():
        found = [path]
    else:
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            raise UserError(f"no such file: {path}; check --input")
    return found


def read_records(files: list[Path]) -> Iterator[tuple[Record, Origin]]:
    """All records of the files, one after the other.

    Raises:
        UserError: A file cannot be read, or a record is no object; the message names file and record.
    """
    for file in files:
        number = 0
        try:
            for record in READERS[file.suffix.lower()](file):
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
                f"{file} cannot be read near record {number + 1} ({_first_line(error)}); copy or convert it again"
            ) from error


def _known_kinds() -> str:
    return ", ".join(suffix.lstrip(".") for suffix in READERS)


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
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{file}: line {number} is not JSON ({error}); mend or remove it") from error


def _read_json(file: Path) -> Iterator[Any]:
    """An array of objects, or objects one after the other (lines, or pretty-printed); decoded as they come."""
    decoder = json.JSONDecoder()
    with file.open(encoding="utf-8-sig") as stream:
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
                    record, position = decoder.raw_decode(text, position)
                    number += 1
                    yield record
                    continue
                except RecursionError as error:
                    raise UserError(f"{file}: record {number + 1} is not JSON ({error}); mend or remove it") from error
                except ValueError as error:
                    if ended:
                        raise UserError(
                            f"{file}: record {number + 1} is not JSON ({error}); mend or remove it"
                        ) from error
            elif ended:
                if in_array:
                    raise UserError(
                        f"{file} ends after record {number} without closing its array: it was cut; copy it again"
                    )
                return
            # A record that does not end in this block: as much again, so that a huge one is tried a few times only.
            more = stream.read(max(_BLOCK, len(text) - position))
            text, position, ended = text[position:] + more, 0, not more


def _skip(text: str, position: int, also: str = "") -> int:
    while position < len(text) and (text[position].isspace() or text[position] in also):
        position += 1
    return position


def _read_csv(file: Path) -> Iterator[Any]:
    """Rows under a line of column names; an empty cell is None, as in every other reader of csv data sets."""
    csv.field_size_limit(_LARGEST_CELL)
    with file.open(encoding="utf-8-sig", newline="") as stream:
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
    with file.open(encoding="utf-8-sig") as lines:
        for line in lines:
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
        raise UserError(f"{file} cannot be read as parquet ({_first_line(error)}); copy or write it again") from error


def _read_arrow(file: Path) -> Iterator[Any]:
    """Arrow's stream form (as `datasets` caches it) or file form (feather)."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            if is_file:
                reader = pyarrow.ipc.open_file(source)
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                batches = iter(pyarrow.ipc.open_stream(source))
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
        raise UserError(f"{file} cannot be read as arrow ({_first_line(error)}); copy or write it again") from error


def _refuse_equal_names(columns: Sequence[str], file: Path) -> None:
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{file} has two columns called '{twice}'; rename or remove one")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
