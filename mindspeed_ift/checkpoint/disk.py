"""Questions to the disk before something large is written: may it be, and is there room."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mindspeed_ift.config.errors import RunError, UserError


def free_bytes(path: Path) -> int:
    """Free space where ``path`` is or would be."""
    return shutil.disk_usage(_existing(path)).free


def require_space(path: Path, needed: int, flag: str, free: int | None = None) -> None:
    """Do nothing if ``needed`` bytes have room.

    Args:
        path: what will be written, there or not.
        needed: bytes.
        flag: that gave the path, for the message.
        free: bytes that there are; None measures.

    Raises:
        RunError: they have not.
    """
    free = free_bytes(path) if free is None else free
    if needed > free:
        raise RunError(
            f"no space left for {flag} {path}: {in_gigabytes(needed)} are needed, {in_gigabytes(free)} are free; free some "
            f"or give another {flag}"
        )


def require_folder(path: Path, flag: str) -> None:
    """Do nothing if ``path`` is a folder that may be written, or can be made.

    Raises:
        UserError: it is a file, or may not be written.
    """
    existing = _existing(path)
    if not existing.is_dir():
        raise UserError(f"{flag} {path} cannot be a folder: {existing} is a file; give another path")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path} cannot be written: no permission in {existing}; give another path")


def in_gigabytes(size: int) -> str:
    """``16.4 GB``, for small sizes ``1.2 MB``."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = Path(path).absolute()
    return next(place for place in (path, *path.parents) if place.exists())
