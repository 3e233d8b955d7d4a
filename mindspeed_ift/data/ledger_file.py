"""Rows of the ledger in, ``PREFIX.ledger.parquet`` out: one row for every record, in the order in which they were read.

While a run lasts the rows wait in a plain file of fixed-size rows, which can be gone on with from any place (a parquet
file cannot); memory holds the names of files and the reasons only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ift.config.errors import UserError, first_line
from mindspeed_ift.data.ledger import Entry, Outcome
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


def ledger_path(prefix: str | Path) -> Path:
    """Where the ledger of the dataset at ``prefix`` lies."""
    return Path(f"{prefix}.ledger.parquet")


def join_ledgers(sources: Sequence[Path], target: Path) -> Mark:
    """Write the rows of several ledgers into one, in their order; size and checksum of the file.

    Args:
        sources: At least one.
        target: The new file.

    Raises:
        UserError: One is no ledger.
    """
    import pyarrow
    from pyarrow import parquet

    with contextlib.ExitStack() as stack:
        writer = None
        for source in sources:
            try:
                file = stack.enter_context(parquet.ParquetFile(source))
                if writer is None:
                    writer = stack.enter_context(parquet.ParquetWriter(target, file.schema_arrow, compression="zstd"))
                for batch in file.iter_batches(_ROWS_AT_ONCE):
                    writer.write_batch(batch.cast(writer.schema))
            except (pyarrow.ArrowException, ValueError) as error:
                raise UserError(f"{source} is no ledger ({first_line(error)}); remove it or copy it again") from error
    return mark_of(target)


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

    def write_parquet(self, path: Path) -> Mark:
        """Write all rows as parquet (imports pyarrow); size and checksum of the file."""
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
        schema = pyarrow.schema(
            [(name, types.get(name) or pyarrow.from_numpy_dtype(_ROW[name])) for name in _ROW.names or ()]
        )
        with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
            for start in range(0, count, _ROWS_AT_ONCE):
                block = rows[start : start + _ROWS_AT_ONCE]
                columns = []
                for name in schema.names:
                    codes = pyarrow.array(block[name], mask=block[name] == 0 if name == "reason" else None)
                    columns.append(pyarrow.DictionaryArray.from_arrays(codes, words[name]) if name in words else codes)
                writer.write_batch(pyarrow.record_batch(columns, schema=schema))
        return mark_of(path)

    def close(self) -> None:
        """Write no more."""
        self._rows.close()
