"""Files whose parts have their places: written in any order, by any thread, and read without a copy."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Hashable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mindspeed_ift.checkpoint.checksums import Digest, new_digest
from mindspeed_ift.config.errors import UserError

_BLOCK = 1 << 18
"""Bytes that are handed on at a time: they stay in the cache of a core from their source to the file."""


_STRETCH = 1 << 28
"""Bytes after which those before are brought down to the disk, while others are written."""


class Place(NamedTuple):
    """Where some bytes lie in a file."""

    start: int
    length: int


def mapped(path: Path, place: Place) -> Tensor:
    """The bytes at a place, read by whoever looks at them; changes stay in memory.

    Raises:
        UserError: the file ends before.
    """
    if not place.length:
        return torch.empty(0, dtype=torch.uint8)
    before = place.start % mmap.ALLOCATIONGRANULARITY
    try:
        with open(path, "rb") as file:
            length = place.length + before
            window = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=place.start - before)
    except (OSError, ValueError):
        raise UserError(f"{path} is cut short; take an older checkpoint") from None
    window.madvise(mmap.MADV_SEQUENTIAL)
    return torch.frombuffer(window, dtype=torch.uint8, offset=before, count=place.length)


class PlacedFile:
    """A file that is filled part by part.

    Args:
        path: a file that is there, with what is between the parts.
        places: of the parts, by their names.
        checksum: `finish` shall know it. It is computed behind the writers, by a thread that also brings down to the disk
            what they have written.
    """

    def __init__(self, path: Path, places: Mapping[Hashable, Place], *, checksum: bool) -> None:
        self.path, self._places = path, places
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115 - closed by `finish`
        self._missing = set(places)
        self._ordered = sorted(places, key=lambda name: places[name].start)
        self._whole_until = 0
        self._lock = threading.Lock()
        self._follower = _Follower(path, new_digest() if checksum else None)

    def fill(self, name: Hashable, parts: Iterable[Tensor]) -> None:
        """Write the bytes of some tensors, one after the other, into a place that they fill.

        Raises:
            OSError: it cannot be written.
        """
        at = self._places[name].start
        for block in _blocks(parts):
            while block:  # one call may take less
                written = os.pwrite(self._file.fileno(), block, at)
                block, at = block[written:], at + written
        assert at == sum(self._places[name]), (name, at, self._places[name])
        with self._lock:
            self._missing.remove(name)
            count = self._whole_until
            while count < len(self._ordered) and self._ordered[count] not in self._missing:
                count += 1
            if count > self._whole_until:
                self._follower.follow(sum(self._places[self._ordered[count - 1]]))
            self._whole_until = count

    def finish(self) -> str:
        """Bring it down to the disk; all its parts are there.

        Returns:
            Its checksum, if one was asked for.

        Raises:
            OSError: it cannot be written.
        """
        assert not self._missing, sorted(map(str, self._missing))[:3]
        told = self._follower.finish()
        os.fsync(self._file.fileno())
        self.close()
        return told

    def close(self) -> None:
        """Let go of it, whole or not."""
        self._file.close()
        self._follower.stop()


class _Follower:
    """A thread behind the writers of a file, in what is whole of it from the front on.

    It reads that again while it is still in memory, for the checksum, and brings it down to the disk stretch by stretch.
    """

    def __init__(self, path: Path, digest: Digest | None) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by `stop`
        self._digest, self._block, self._down = digest, bytearray(_BLOCK), 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checksum")

    def follow(self, end: int) -> None:
        """Up to ``end`` the file is as it will be."""
        self._thread.submit(self._go, end)

    def finish(self) -> str:
        """All of it is as it will be; its checksum, if one was asked for."""
        self._thread.submit(self._go, os.fstat(self._file.fileno()).st_size).result()
        self.stop()
        return self._digest.hexdigest() if self._digest is not None else ""

    def stop(self) -> None:
        """Let go of the file."""
        self._thread.shutdown(cancel_futures=True)
        self._file.close()

    def _go(self, end: int) -> None:
        if self._digest is not None:
            self._read(self._digest, end)
        if end - self._down >= _STRETCH:
            os.fdatasync(self._file.fileno())
            self._down = end

    def _read(self, digest: Digest, end: int) -> None:
        view = memoryview(self._block)
        while (left := end - self._file.tell()) > 0:
            count = self._file.readinto(view[:left])
            if not count:
                raise OSError(f"{self._file.name} has become shorter")
            digest.update(view[:count])


def _blocks(parts: Iterable[Tensor]) -> Iterator[memoryview]:
    """Their bytes, row by row; what is not in one piece is copied a block at a time."""
    for part in parts:
        if part.is_contiguous():
            pieces: Iterable[Tensor] = (part,)
        else:
            rows = max(1, _BLOCK // max(1, part[0].nbytes))
            pieces = (piece.contiguous() for piece in part.split(rows))
        for piece in pieces:
            whole = memoryview(piece.detach().reshape(-1).view(torch.uint8).numpy())
            for start in range(0, len(whole), _BLOCK):
                yield whole[start : start + _BLOCK]
