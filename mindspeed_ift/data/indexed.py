"""Arrays in, ``.bin``/``.idx`` columns and a manifest out, and back: the dataset on disk.

Layout (Megatron-core's indexed dataset, byte-compatible with MindSpeed-LLM): ``.bin`` holds the values of all
documents, one after the other, little endian, without padding; ``.idx`` holds ``MMIDIDX\\0\\0``, version (uint64, 1),
dtype code (uint8), number of sequences (uint64), number of document indices (uint64, documents + 1), lengths (int32),
byte offsets (int64), document indices (int64, from 0). One sequence a document here. Written with numpy alone: the
library's own builder writes the same bytes but costs an import of torch and megatron (seconds) in every process that
prepares data.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mindspeed_ift.config.errors import RunError, UserError

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_INT32_CODE = 4
_WRITE_BLOCK = 1 << 20


def column_path(prefix: str | Path, column: str, packed_name: bool = True) -> str:
    """Path of a column without suffix, as MindSpeed-LLM names it.

    Args:
        prefix: ``--output-prefix`` of the dataset.
        column: ``input_ids``, ``attention_mask``, ``labels``, or a JSON key of plain text.
        packed_name: Instruction data is called ``_packed_`` whether packed or not; plain text is not.
    """
    return f"{prefix}_{'packed_' if packed_name else ''}{column}_document"


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
        self._values = np.memmap(values, dtype=self.dtype, mode="r") if total else np.zeros(0, self.dtype)

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
        if code not in _DTYPES:
            raise UserError(
                f"{index} holds values of dtype code {code}, which are no token ids; prepare the dataset again"
            )
        return np.dtype(_DTYPES[code]).newbyteorder("<"), count, documents

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, document: int) -> np.ndarray:
        """Values of one document: a read-only view ``[n]`` of the mapped file, in the file's dtype (int32)."""
        start = int(self.offsets[document]) // self.dtype.itemsize
        return self._values[start : start + int(self.lengths[document])]


@contextlib.contextmanager
def report_write_errors(path: str | Path) -> Iterator[None]:
    """Turn a failed write into one line: a full disk is a RunError, a place one may not write to a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RunError(f"no space left to write {path}; free some or choose another --output-prefix") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            raise UserError(f"cannot write {path} ({error.strerror}); choose another --output-prefix") from error
        raise


class ColumnWriter:
    """Writes one column aside (``NAME.partial`` beside the final files); `DatasetWriter` renames it.

    Args:
        path: Final path without suffix.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.lengths: list[np.ndarray] = []
        self.digests: dict[str, dict[str, Any]] = {}
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._file = open(f"{path}.bin.partial", "wb", buffering=_WRITE_BLOCK)  # noqa: SIM115 - lives as long as self

    def append(self, values: np.ndarray, lengths: np.ndarray) -> None:
        """Add documents.

        Args:
            values: int32 ``[sum of lengths]``, the documents one after the other.
            lengths: int32 ``[documents]``.
        """
        data = np.ascontiguousarray(values, dtype="<i4").data
        self._file.write(data)
        self._hash.update(data)
        self._bytes += data.nbytes
        self.lengths.append(np.asarray(lengths, dtype="<i4"))

    def finish(self) -> None:
        """Close ``.bin`` and write ``.idx``, both still aside."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        lengths = np.concatenate(self.lengths) if self.lengths else np.zeros(0, "<i4")
        offsets = np.zeros(len(lengths), "<i8")
        np.cumsum(lengths[:-1], dtype=np.int64, out=offsets[1:])
        index = b"".join(
            (
                _HEADER.pack(_MAGIC, _VERSION, _INT32_CODE, len(lengths), len(lengths) + 1),
                lengths.tobytes(),
                (offsets * 4).tobytes(),
                np.arange(len(lengths) + 1, dtype="<i8").tobytes(),
            )
        )
        with open(f"{self.path}.idx.partial", "wb") as file:
            file.write(index)
            file.flush()
            os.fsync(file.fileno())
        name = os.path.basename(self.path)
        self.digests = {
            f"{name}.bin": {"bytes": self._bytes, "sha256": self._hash.hexdigest()},
            f"{name}.idx": {"bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
        }

    def publish(self) -> None:
        """Give both files their names."""
        for suffix in (".bin", ".idx"):
            os.replace(f"{self.path}{suffix}.partial", self.path + suffix)

    def discard(self) -> None:
        """Remove what was written aside."""
        with contextlib.suppress(OSError):
            self._file.close()
        for suffix in (".bin", ".idx"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.path}{suffix}.partial")


class DatasetWriter:
    """All columns of a dataset, written aside and renamed together at the end; a failure leaves nothing behind.

    Args:
        prefix: ``--output-prefix``; its folder is made.
        columns: Names of the columns, see `column_path`.
        packed_name: See `column_path`.

    Raises:
        UserError: The folder cannot be written.
        RunError: The disk is full (from any method).
    """

    def __init__(self, prefix: str | Path, columns: Sequence[str], packed_name: bool = True) -> None:
        self.prefix = str(prefix)
        self.columns: dict[str, ColumnWriter] = {}
        with report_write_errors(self.prefix):
            os.makedirs(os.path.dirname(self.prefix) or ".", exist_ok=True)
            for column in columns:
                self.columns[column] = ColumnWriter(column_path(prefix, column, packed_name))

    def append(self, values: Mapping[str, np.ndarray], lengths: np.ndarray | Mapping[str, np.ndarray]) -> None:
        """Add documents to every column.

        Args:
            values: Column -> int32 ``[sum of lengths]``.
            lengths: int32 ``[documents]``, of all columns alike or by column.
        """
        with report_write_errors(self.prefix):
            for name, writer in self.columns.items():
                writer.append(values[name], lengths[name] if isinstance(lengths, Mapping) else lengths)

    def commit(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Finish the files, rename them, write the manifest last, and return it with ``files`` filled in.

        The old manifest goes first: an interruption between the renames leaves files without a manifest, never a
        manifest that vouches for other files.
        """
        with report_write_errors(self.prefix):
            files: dict[str, dict[str, Any]] = {}
            for writer in self.columns.values():
                writer.finish()
                files.update(writer.digests)
            complete = {**manifest, "files": files}
            target = manifest_path(self.prefix)
            aside = Path(f"{target}.partial")
            aside.write_text(json.dumps(complete, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            target.unlink(missing_ok=True)
            for writer in self.columns.values():
                writer.publish()
            os.replace(aside, target)
        return complete

    def discard(self) -> None:
        """Remove everything written aside."""
        for writer in self.columns.values():
            writer.discard()
        Path(f"{manifest_path(self.prefix)}.partial").unlink(missing_ok=True)

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
