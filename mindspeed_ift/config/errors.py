"""The two errors a user sees as one line: what is wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Collection


class UserError(ValueError):
    """Data or flags cannot be used as given. The command line prints it as one line and exits with 2."""


class RunError(RuntimeError):
    """The run itself failed (disk, device, diverged loss). The command line prints one line and exits with 1."""


def first_line(error: Exception) -> str:
    """What an error of a library says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, known: Collection[str], otherwise: str, cutoff: float = 0.6) -> str:
    """The remedy for a name that nobody knows: the known one most like it, ``otherwise`` if none is by ``cutoff``."""
    near = difflib.get_close_matches(name, known, 1, cutoff)
    return f"did you mean {near[0]}?" if near else otherwise
