"""Checksums of files: not to be told from others by chance, and as fast as the file is read."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import xxhash

_NAME = "xxh3_128"
_OLDER = "sha256"
"""Of checkpoints that were written before; it costs more than all the rest of writing one."""
_BLOCK = 1 << 18


class Digest(Protocol):
    """A checksum that is being computed."""

    def update(self, data: memoryview, /) -> None:
        """Go on with these bytes."""

    def hexdigest(self) -> str:
        """Of all so far."""


def new_digest() -> Digest:
    """Of no bytes yet, of the kind that `described` takes."""
    return xxhash.xxh3_128()


def described(path: Path, checksum: str | None = None) -> dict[str, Any]:
    """What a manifest says of a file: its size and checksum.

    Args:
        path: of the file.
        checksum: of it, if known.
    """
    return {"bytes": path.stat().st_size, _NAME: checksum or _checksum(path, _NAME)}


def wrong_size(path: Path, facts: Mapping[str, Any]) -> str | None:
    """What is wrong with a file without reading it: it is missing, or of another size than a manifest says; None: neither."""
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != facts["bytes"]:
        return f"{path} has {path.stat().st_size:,} bytes, not the {facts['bytes']:,} that were written"
    return None


def is_as_described(path: Path, facts: dict[str, Any]) -> bool:
    """Whether a file has the checksum that a manifest says, of whichever kind."""
    name = _NAME if _NAME in facts else _OLDER
    return _checksum(path, name) == facts[name]


def _checksum(path: Path, name: str) -> str:
    facts = path.stat()
    return _checksum_of(path, name, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _checksum_of(path: Path, name: str, size: int, changed_at: int) -> str:
    """Once for a file as it is: a resume asks before it decides, and again as it reads."""
    digest: Digest = new_digest() if name == _NAME else hashlib.sha256()
    block = memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()
