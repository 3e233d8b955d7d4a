"""Arrays in, ``.bin``/``.idx`` columns and a manifest out, and back: the dataset on disk.

Layout (Megatron-core's indexed dataset, byte-compatible with MindSpeed-LLM): ``.bin`` holds the values of all
documents, one after the other, little endian, without padding; ``.idx`` holds ``MMIDIDX\\0\\0``, version (uint64, 1),
dtype code (uint8), number of sequences (uint64), number of document indices (uint64, documents + 1), lengths (int32),
byte offsets (int64), document indices (int64, from 0). One sequence a document here. Written with numpy alone: the
library's own builder writes the same bytes but costs an import of torch and megatron (seconds) in every process that
prepares data.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.staging import GrowingFile, Mark, Staging, publish, report_write_errors

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 7: np.float32, 8: np.uint16}
_CODES = {np.dtype(np.int32): 4, np.dtype(np.float32): 7}
WEIGHTS = "loss_weights"
"""Column of the labels' shares in the loss, float32; there only if some record asks for other shares than 0 and 1."""
_DOCUMENTS_AT_ONCE = 1 << 18


def column_path(prefix: str | Path, column: str, packed_name: bool = True) -> str:
    """Path of a column without suffix, as MindSpeed-LLM names it.

    Args:
        prefix: ``--output-prefix`` of the dataset.
        column: ``input_ids``, ``attention_mask``, ``labels``, or a JSON key of plain text.
        packed_name: Instruction data is called ``_packed_`` whether packed or not; plain text is not.
    """
    return f"{prefix}_{'packed_' if packed_name else ''}{column}_document"


def column_dtype(column: str) -> np.dtype:
    """What a column holds: float32 for `WEIGHTS`, int32 for all others."""
    return np.dtype("<f4" if column == WEIGHTS else "<i4")


def manifest_path(prefix: str | Path) -> Path:
    """Where the manifest of the dataset at ``prefix`` lies."""
    return Path(f"{prefix}.manifest.json")


def read_manifest(prefix: str | Path) -> dict[str, Any] | None:
    """The manifest of the dataset at ``prefix``, or None for a dataset without one (of MindSpeed-LLM, say).

    Raises:
        UserError: The manifest is there and is not a JSON object of a format this version reads.
    """
    path = manifest_path(prefix)
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"manifest {path} cannot be read ({error}); prepare the dataset again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != 1:
        raise UserError(f"manifest {path} is not of format 1; prepare the dataset again with this version")
    return manifest


class IndexedColumn:
    """One column of an indexed dataset, mapped into memory: document number -> its values.

    Args:
        prefix_path: Path without suffix: ``<prefix>_packed_input_ids_document``.

    Raises:
        UserError: A file is missing, is no indexed dataset, or ``.bin`` and ``.idx`` do not fit each other.
    """

    def __init__(self, prefix_path: str | Path) -> None:
        self.path = str(prefix_path)
        index, values = Path(f"{self.path}.idx"), Path(f"{self.path}.bin")
        for file in (index, values):
            if not file.is_file():
                raise UserError(
                    f"no such dataset file: {file}; check the data path, which is the --output-prefix of"
                    " preprocess_data.py"
                )
        self.dtype, count, documents = self._read_header(index)
        expected = _HEADER.size + count * (4 + 8) + documents * 8
        if index.stat().st_size != expected:
            raise UserError(
                f"{index} has {index.stat().st_size} bytes where its header says {expected}: it was cut or"
                " changed; prepare or copy the dataset again"
            )
        raw = np.memmap(index, dtype=np.uint8, mode="r")
        self.lengths: np.ndarray = raw[_HEADER.size : _HEADER.size + 4 * count].view("<i4")
        """int32 ``[documents]``: number of values of each document."""
        self.offsets: np.ndarray = raw[_HEADER.size + 4 * count : _HEADER.size + 12 * count].view("<i8")
        """int64 ``[documents]``: byte offset of each document in ``.bin``."""
        self.documents: np.ndarray = raw[_HEADER.size + 12 * count :].view("<i8")
        """int64 ``[documents + 1]``, from 0: the first sequence of each document, and the end of the last."""
        total = int(self.lengths.sum(dtype=np.int64)) * self.dtype.itemsize
        if values.stat().st_size != total:
            raise UserError(
                f"{values} has {values.stat().st_size} bytes where {index.name} says {total}: the two files do"
                " not belong together or one was cut; prepare or copy the dataset again"
            )
        self.values: np.ndarray = np.memmap(values, self.dtype, "r") if total else np.zeros(0, self.dtype)
        """The values of all documents, one after the other, in the file's dtype (int32)."""

    @staticmethod
    def _read_header(index: Path) -> tuple[np.dtype, int, int]:
        with index.open("rb") as file:
            head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(_MAGIC):
            raise UserError(
                f"{index} is not the index of a Megatron indexed dataset; give the prefix of preprocess_data.py's"
                " output"
            )
        _, version, code, count, documents = _HEADER.unpack(head)
        if version != _VERSION:
            raise UserError(
                f"{index} has index version {version}, this program reads version {_VERSION}; prepare the dataset again"
            )
        is_float = code in _DTYPES and _DTYPES[code] is np.float32
        if code not in _DTYPES or is_float is not index.name.endswith(f"_{WEIGHTS}_document.idx"):
            raise UserError(
                f"{index} holds values of dtype code {code}, which are none of such a column; prepare the dataset again"
            )
        return np.dtype(_DTYPES[code]).newbyteorder("<"), count, documents

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, document: int) -> np.ndarray:
        """Values of one document: a read-only view ``[n]`` of the mapped file, in the file's dtype (int32)."""
        start = int(self.offsets[document]) // self.dtype.itemsize
        return self.values[start : start + int(self.lengths[document])]


class ColumnWriter:
    """Writes one column aside; `DatasetWriter` gives it its name.

    Args:
        path: Final path without suffix.
        folder: Where the files grow.
        marks: Go on from there (see `GrowingFile`); None begins anew.
        dtype: Of the values, see `column_dtype`.

    Raises:
        ChangedFile: A file is not as its mark says.
    """

    def __init__(
        self,
        path: str,
        folder: Path,
        marks: Mapping[str, Mark] | None = None,
        dtype: np.dtype | None = None,
    ) -> None:
        self.path = path
        self.dtype = dtype or column_dtype("")
        self.folder = folder
        self.name = os.path.basename(path)
        self.values, self._lengths = (
            GrowingFile(folder / name, None if marks is None else marks.get(name, {}))
            for name in (f"{self.name}.bin", f"{self.name}.lengths")
        )

    @property
    def aside(self) -> Path:
        """Where the column lies until it has its name, for `IndexedColumn`, once it is finished."""
        return self.folder / self.name

    def append(self, values: np.ndarray, lengths: np.ndarray) -> None:
        """Add documents.

        Args:
            values: int32 (or the column's dtype) ``[sum of lengths]``, the documents one after the other.
            lengths: int32 ``[documents]``.
        """
        self.values.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self._lengths.write(np.ascontiguousarray(lengths, dtype="<i4").data)

    def read_back(self) -> tuple[np.ndarray, np.ndarray]:
        """What was appended so far: values and lengths, mapped."""
        self.marks()
        return tuple(
            np.memmap(file.path, dtype, "r") if file.path.stat().st_size else np.zeros(0, dtype)
            for file, dtype in ((self.values, self.dtype), (self._lengths, np.dtype("<i4")))
        )

    def marks(self) -> dict[str, Mark]:
        """Of the files as they are now."""
        return {file.path.name: file.mark() for file in (self.values, self._lengths)}

    def finish(self) -> dict[str, Mark]:
        """Close ``.bin`` and write ``.idx``, both still aside; their sizes and checksums."""
        self._lengths.mark()
        count = self._lengths.path.stat().st_size // 4
        lengths = np.memmap(self._lengths.path, "<i4", "r") if count else np.zeros(0, "<i4")
        index = GrowingFile(self.folder / f"{self.name}.idx")
        index.write(_HEADER.pack(_MAGIC, _VERSION, _CODES[self.dtype], count, count + 1))
        offset = 0
        blocks = [slice(start, start + _DOCUMENTS_AT_ONCE) for start in range(0, count, _DOCUMENTS_AT_ONCE)]
        for block in blocks:
            index.write(lengths[block].data)
        for block in blocks:
            ends = offset + np.cumsum(lengths[block], dtype="<i8") * 4
            index.write(np.concatenate((np.array([offset], "<i8"), ends[:-1])).data)
            offset = int(ends[-1])
        for start in range(0, count + 1, _DOCUMENTS_AT_ONCE):
            index.write(np.arange(start, min(start + _DOCUMENTS_AT_ONCE, count + 1), dtype="<i8").data)
        found = {file.path.name: file.mark() for file in (self.values, index)}
        index.close()
        self.close()
        return found

    def close(self) -> None:
        """Write no more."""
        self.values.close()
        self._lengths.close()


class DatasetWriter:
    """All columns of a dataset, written aside and named together at the end; a failure leaves no dataset behind.

    Args:
        prefix: ``--output-prefix``; its folder is made.
        columns: Names of the columns, see `column_path`.
        packed_name: See `column_path`.
        staging: Where the files grow, kept by the caller; None takes PREFIX.partial and empties it.
        marks: Go on from there, of `marks`; None begins anew.

    Raises:
        UserError: The folder cannot be written.
        RunError: The disk is full (from any method).
        ChangedFile: A file is not as its mark says.
    """

    def __init__(
        self,
        prefix: str | Path,
        columns: Sequence[str],
        packed_name: bool = True,
        staging: Staging | None = None,
        marks: Mapping[str, Mark] | None = None,
    ) -> None:
        self.prefix = str(prefix)
        self.columns: dict[str, ColumnWriter] = {}
        self._own = None
        if staging is None:
            self._own = staging = Staging(self.prefix)
            staging.clear()
        self.folder = staging.folder
        try:
            with report_write_errors(self.prefix):
                for column in columns:
                    self.add_column(column, packed_name, marks)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def add_column(self, column: str, packed_name: bool = True, marks: Mapping[str, Mark] | None = None) -> None:
        """Have one column more; what the others hold already must be appended to it.

        Arguments as of the class.
        """
        path = column_path(self.prefix, column, packed_name)
        self.columns[column] = ColumnWriter(path, self.folder, marks, column_dtype(column))

    def append(self, values: Mapping[str, np.ndarray], lengths: np.ndarray | Mapping[str, np.ndarray]) -> None:
        """Add documents to every column.

        Args:
            values: Column -> int32 (or the column's dtype) ``[sum of lengths]``.
            lengths: int32 ``[documents]``, of all columns alike or by column.
        """
        with report_write_errors(self.prefix):
            for name, writer in self.columns.items():
                writer.append(values[name], lengths[name] if isinstance(lengths, Mapping) else lengths)

    def marks(self) -> dict[str, Mark]:
        """How far each file is, for ``marks`` of a later writer."""
        with report_write_errors(self.prefix):
            return {name: mark for writer in self.columns.values() for name, mark in writer.marks().items()}

    @property
    def bytes_written(self) -> int:
        """Of the values of all columns."""
        return sum(column.values.size for column in self.columns.values())

    def finish(self) -> dict[str, Mark]:
        """Close the files, still aside, where `IndexedColumn` can read them; their sizes and checksums."""
        with report_write_errors(self.prefix):
            return {name: mark for writer in self.columns.values() for name, mark in writer.finish().items()}

    def commit(self, manifest: Mapping[str, Any], beside: Mapping[str, Mark] | None = None) -> dict[str, Any]:
        """Finish the files, give them their names, write the manifest last, and return it with ``files`` filled in.

        Args:
            manifest: What is to be known of the dataset.
            beside: Further files that lie in the folder of the growing ones and belong to the dataset.
        """
        complete = {**manifest, "files": {**self.finish(), **(beside or {})}}
        target = manifest_path(self.prefix)
        with report_write_errors(self.prefix):
            aside = self.folder / target.name
            aside.write_text(json.dumps(complete, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            weights = os.path.basename(column_path(self.prefix, WEIGHTS))
            obsolete = [] if WEIGHTS in self.columns else [f"{weights}.idx", f"{weights}.bin"]
            publish(self.folder, target.parent, [*complete["files"], target.name], obsolete)
        return complete

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self.columns.values():
            writer.close()
        if self._own is not None:
            self._own.__exit__(kind, error, trace)
