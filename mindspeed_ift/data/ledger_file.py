"""Rows of the ledger in, ``PREFIX.ledger.parquet`` out: one row for every record, in the order in which they were read.

While a run lasts the rows wait in a plain file of fixed-size rows, which can be gone on with from any place (a parquet
file cannot); memory holds the names of files and the reasons only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ift.config.errors import UserError, first_line
from mindspeed_ift.data.ledger import Entry, Outcome
from mindspeed_ift.data.packing import Places
from mindspeed_ift.data.staging import GrowingFile, Mark, mark_of

_ROW = np.dtype(
    [
        ("file", "<i4"),
        ("record", "<i8"),
        ("outcome", "<i4"),
        ("reason", "<i4"),
        ("samples", "<i4"),
        ("tokens", "<i8"),
        ("learnt_tokens", "<i8"),
        ("cut_tokens", "<i8"),
    ]
)
_ROWS_AT_ONCE = 1 << 16
_NAME = "ledger.rows"
PLACES = ("rows", "positions")
"""Columns of packed datasets: the rows that hold the samples of a record, and at which token of its row each begins."""


def ledger_path(prefix: str | Path) -> Path:
    """Where the ledger of the dataset at ``prefix`` lies."""
    return Path(f"{prefix}.ledger.parquet")


def join_ledgers(sources: Sequence[tuple[Path, int]], target: Path) -> Mark:
    """Write the rows of several ledgers into one, in their order; size and checksum of the file.

    Args:
        sources: At least one, and how many documents its dataset has.
        target: The new file; it does not tell places that one of the sources does not tell.

    Raises:
        UserError: One is no ledger.
    """
    import pyarrow
    from pyarrow import compute, parquet

    with contextlib.ExitStack() as stack:
        files = []
        for source, _ in sources:
            with _as_user_error(source):
                files.append(stack.enter_context(parquet.ParquetFile(source)))
        shared = set.intersection(*(set(file.schema_arrow.names) for file in files))
        schema = pyarrow.schema([field for field in files[0].schema_arrow if field.name in shared])
        writer = stack.enter_context(parquet.ParquetWriter(target, schema, compression="zstd"))
        before = 0
        for file, (source, documents) in zip(files, sources):
            with _as_user_error(source):
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=schema.names):
                    columns = {name: batch.column(name) for name in schema.names}
                    if "rows" in columns:
                        rows = columns["rows"]
                        moved = compute.add(rows.flatten(), pyarrow.scalar(before, pyarrow.int32()))
                        offsets = compute.subtract(rows.offsets, rows.offsets[0])
                        columns["rows"] = pyarrow.ListArray.from_arrays(offsets, moved)
                    writer.write_batch(pyarrow.record_batch(columns).cast(schema))
            before += documents
    return mark_of(target)


@contextlib.contextmanager
def _as_user_error(source: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, ValueError, KeyError) as error:
        raise UserError(f"{source} is no ledger ({first_line(error)}); remove it or copy it again") from error


class LedgerFile:
    """The rows of a run.

    Args:
        folder: Where they wait.
        state: Go on from there, of `state`; None begins anew.
        marks: Of the file then, of `marks`.

    Raises:
        ChangedFile: The file is not as its mark says.
    """

    def __init__(
        self, folder: Path, state: Mapping[str, Any] | None = None, marks: Mapping[str, Mark] | None = None
    ) -> None:
        self._rows = GrowingFile(folder / _NAME, None if marks is None else marks.get(_NAME, {}))
        # Words -> codes. The codes of outcomes and the reason "" are fixed.
        self._codes: dict[str, dict[str, int]] = {"file": {}, "reason": {"": 0}}
        if state is not None:
            self._codes = {name: {word: code for code, word in enumerate(words)} for name, words in state.items()}
        self._outcomes = {outcome: code for code, outcome in enumerate(Outcome)}

    def append(self, entries: Iterable[Entry]) -> None:
        """Add rows."""
        files, reasons = self._codes["file"], self._codes["reason"]
        rows = [
            (
                files.setdefault(entry.file, len(files)),
                entry.record,
                self._outcomes[entry.outcome],
                reasons.setdefault(entry.reason, len(reasons)),
                *entry[4:],
            )
            for entry in entries
        ]
        self._rows.write(np.array(rows, _ROW).tobytes())

    def marks(self) -> dict[str, Mark]:
        """Of the file as it is now."""
        return {_NAME: self._rows.mark()}

    def state(self) -> dict[str, list[str]]:
        """What else a later `LedgerFile` needs to go on."""
        return {name: list(codes) for name, codes in self._codes.items()}

    def write_parquet(self, path: Path, places: Places | None = None) -> Mark:
        """Write all rows as parquet (imports pyarrow); size and checksum of the file.

        Args:
            path: Of the file.
            places: Where the samples stand in packed rows: two lists more for each record, one number a sample.
        """
        import pyarrow
        from pyarrow import parquet

        self._rows.mark()
        count = self._rows.path.stat().st_size // _ROW.itemsize
        rows = np.memmap(self._rows.path, _ROW, "r") if count else np.zeros(0, _ROW)
        words = {
            **{name: list(codes) for name, codes in self._codes.items()},
            "outcome": [one.value for one in Outcome],
        }
        types = {name: pyarrow.dictionary(pyarrow.int32(), pyarrow.string()) for name in words}
        fields = [(name, types.get(name) or pyarrow.from_numpy_dtype(_ROW[name])) for name in _ROW.names or ()]
        lists = _as_lists(places)
        schema = pyarrow.schema([*fields, *((name, pyarrow.list_(pyarrow.int32())) for name in lists)])
        done = 0
        with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
            for start in range(0, count, _ROWS_AT_ONCE):
                block = rows[start : start + _ROWS_AT_ONCE]
                columns = []
                for name in _ROW.names or ():
                    codes = pyarrow.array(block[name], mask=block[name] == 0 if name == "reason" else None)
                    columns.append(pyarrow.DictionaryArray.from_arrays(codes, words[name]) if name in words else codes)
                offsets = np.concatenate(([0], np.cumsum(block["samples"]))).astype(np.int32)
                some = slice(done, done + int(offsets[-1]))
                columns += [pyarrow.ListArray.from_arrays(offsets, numbers[some]) for numbers in lists.values()]
                done = some.stop
                writer.write_batch(pyarrow.record_batch(columns, schema=schema))
        return mark_of(path)

    def close(self) -> None:
        """Write no more."""
        self._rows.close()


def _as_lists(places: Places | None) -> dict[str, Any]:
    """Column -> its numbers, one a sample."""
    return {} if places is None else dict(zip(PLACES, (places.rows, places.positions)))
