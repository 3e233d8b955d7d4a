"""Files that grow aside, in a folder PREFIX.partial, until all are whole; and the marks from which a run goes on.

A file knows its size and sha256 at every moment. A run that can be resumed writes both into ``progress.json`` from time
to time, with whatever else it needs to go on; what was written behind the last mark is cut off then. Nothing has to be
forced to the disk for this: a file that is not as its mark says is not gone on with.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from mindspeed_ift.config.errors import RunError, UserError

SECONDS_BETWEEN_MARKS = 2.0
_BLOCK = 1 << 20
_PROGRESS = "progress.json"
_NOTE = "UNFINISHED.txt"
_NOTE_TEXT = "Files of a run that is not finished. The same command goes on with them; without it this folder can go.\n"

Mark = dict[str, Any]
"""``bytes`` and ``sha256`` of a file as far as it was written."""


class ChangedFile(Exception):
    """A file is not as its mark says; users never see it."""


class Growing(Protocol):
    """What a run has made so far, with which another can go on."""

    @property
    def reached(self) -> str:
        """How far it is, for people."""
        ...


Grown = TypeVar("Grown", bound=Growing)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where a file is to be written that appears at ``path`` whole or not at all."""
    aside = path.with_name(f".{path.name}.partial")
    yield aside
    os.replace(aside, path)


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all, for what is written at once."""
    with whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def report_write_errors(path: str | Path, flag: str = "--output-prefix") -> Iterator[None]:
    """Turn a failed write into one line: a full disk is a RunError, a place one may not write to a UserError; ``flag``
    chooses another."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RunError(f"no space left to write {path}; free some or choose another {flag}") from error
        if error.errno in (
            errno.EACCES,
            errno.ENOENT,
            errno.EPERM,
            errno.EROFS,
            errno.ENOTDIR,
            errno.EISDIR,
            errno.EEXIST,
        ):
            raise UserError(f"cannot write {path} ({error.strerror}); choose another {flag}") from error
        raise


def require_space(folder: Path, count: int) -> None:
    """Refuse to begin what will not fit.

    Args:
        folder: Where it goes.
        count: Bytes to be written.

    Raises:
        RunError: The disk has not that much room.
    """
    free = shutil.disk_usage(folder).free
    if free < count:
        raise RunError(
            f"the disk of {folder} has {free / 2**20:,.0f} MiB free and {count / 2**20:,.0f} MiB are to be written;"
            " free some or choose another --output-prefix"
        )


def mark_of(path: Path) -> Mark:
    """Size and sha256 of a whole file."""
    count, found = 0, hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_BLOCK):
            found.update(data)
            count += len(data)
    return {"bytes": count, "sha256": found.hexdigest()}


class GrowingFile:
    """A file written bit by bit.

    Args:
        path: Of the file.
        mark: Go on from there: the file is cut to its size then. None begins anew.

    Raises:
        ChangedFile: The file is not as the mark says.
    """

    def __init__(self, path: Path, mark: Mark | None = None) -> None:
        self.path = path
        self._bytes = 0
        self._hash = hashlib.sha256()
        if mark is not None:
            self._read_up_to(mark)
        # Lives as long as self.
        self._file = open(path, "wb" if mark is None else "r+b", buffering=_BLOCK)  # noqa: SIM115
        self._file.truncate(self._bytes)
        self._file.seek(self._bytes)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes (of a contiguous array)."""
        self._file.write(data)
        self._hash.update(data)
        self._bytes += memoryview(data).nbytes

    @property
    def size(self) -> int:
        """Bytes written."""
        return self._bytes

    def mark(self) -> Mark:
        """Size and sha256 of what was written; it can be read by others from then on."""
        self._file.flush()
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}

    def close(self) -> None:
        """Close the file; what could not be written any more is lost without an error."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _read_up_to(self, mark: Mark) -> None:
        size = mark.get("bytes", 0)
        try:
            with self.path.open("rb") as file:
                while self._bytes < size:
                    data = file.read(min(_BLOCK, size - self._bytes))
                    if not data:
                        break
                    self._hash.update(data)
                    self._bytes += len(data)
        except FileNotFoundError:
            raise ChangedFile(self.path) from None
        if mark != {"bytes": self._bytes, "sha256": self._hash.hexdigest()}:
            raise ChangedFile(self.path)


def unfinished(prefix: str | Path) -> Path | None:
    """The folder that a run left there which was not finished; None if there is none."""
    folder = staging_folder(prefix)
    return folder if (folder / _NOTE).is_file() else None


def staging_folder(prefix: str | Path) -> Path:
    """Where the files of a dataset at ``prefix`` grow."""
    return Path(f"{prefix}.partial")


class Staging:
    """The folder PREFIX.partial, held by one run at a time.

    Args:
        prefix: ``--output-prefix``, or whatever grows aside.
        flag: What chooses the place, for messages.

    Raises:
        UserError: The folder cannot be written, another run is at it, or it is not one of a run.
        RunError: The disk is full.
    """

    def __init__(self, prefix: str | Path, flag: str = "--output-prefix") -> None:
        self.folder = staging_folder(prefix)
        note = self.folder / _NOTE
        with report_write_errors(self.folder, flag):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not note.is_file() and any(self.folder.iterdir()):
                raise UserError(f"{self.folder} holds files that are not of a run; move it, or choose another {flag}")
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UserError(
                f"another run is writing {prefix} (it holds {self.folder}); wait for it, or choose another {flag}"
            ) from None
        except OSError:
            pass  # a file system without locks
        with report_write_errors(self.folder):
            note.write_text(_NOTE_TEXT, encoding="utf-8")
        self._saved = time.monotonic()

    @property
    def holds_progress(self) -> bool:
        """Whether an earlier run left something to go on from."""
        return (self.folder / _PROGRESS).is_file()

    @property
    def is_due(self) -> bool:
        """Whether so much time has passed since `save` that another run should not have to do all of it again."""
        return time.monotonic() - self._saved >= SECONDS_BETWEEN_MARKS

    def go_on(
        self,
        find: Callable[[], Mapping[str, Any]],
        grow: Callable[[Mapping[str, Any] | None], Grown],
        report: Callable[[str], None],
    ) -> Grown:
        """Go on with a run that was killed, or begin anew.

        Args:
            find: Finds the fingerprint of this run; only called if there was one.
            grow: Opens the files, given what `save` was told, or None to begin anew; may raise `ChangedFile`.
            report: Takes a line that says what is done with the files of an earlier run.
        """
        if self.holds_progress:
            try:
                state = self.load(find())
                if state is not None:
                    grown = grow(state)
                    report(f"going on after {grown.reached}, up to which {self.folder} is finished")
                    return grown
                report(f"{self.folder} is of a run with other flags, input or program: beginning anew")
            except ChangedFile as changed:
                report(f"{changed} is not as it was left: beginning anew")
        self.clear()
        return grow(None)

    def load(self, fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
        """What `save` was last told, if the run had the same fingerprint; None if there was none or it was another."""
        try:
            found = json.loads((self.folder / _PROGRESS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(found, dict) or found.get("fingerprint") != json.loads(json.dumps(fingerprint)):
            return None
        return found["state"]

    def save(self, fingerprint: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Note how far the run is: ``state`` is what another one with this fingerprint needs to go on."""
        with report_write_errors(self.folder):
            write_text(self.folder / _PROGRESS, json.dumps({"fingerprint": fingerprint, "state": state}))
        self._saved = time.monotonic()

    def clear(self) -> None:
        """Remove the files of an earlier run."""
        (self.folder / _PROGRESS).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.name != _NOTE:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder and what is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Let others have the folder."""
        os.close(self._lock)

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the folder, unless the run failed for no fault of its data or flags and can be gone on with."""
        resumable = kind is not None and not issubclass(kind, UserError) and self.holds_progress
        if not resumable:
            self.remove()
        self.close()


def publish(source: Path, target: Path, names: Sequence[str], obsolete: Sequence[str] = ()) -> None:
    """Move files to their place; whoever looks in between finds no dataset that looks whole.

    The old manifest and the old indices go first, so that no index ever stands beside values of another dataset; new
    indices come after all values, and the manifest, the last of ``names``, at the end.

    Args:
        source: Folder in which all of them lie.
        target: Folder that they go to.
        names: Of the files.
        obsolete: Of files that an earlier dataset may have had there, and this one has not.
    """
    for name in names:
        with (source / name).open("rb") as file:
            os.fsync(file.fileno())
    (source / _PROGRESS).unlink(missing_ok=True)
    *files, manifest = names
    indices = [name for name in files if name.endswith(".idx")]
    for name in [manifest, *indices, *obsolete]:
        (target / name).unlink(missing_ok=True)
    for name in [*(name for name in files if name not in indices), *indices, manifest]:
        os.replace(source / name, target / name)
    folder = os.open(target, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
