"""The two errors a user sees as one line: what is wrong, where, and how to mend it."""

from __future__ import annotations


class UserError(ValueError):
    """Data or flags cannot be used as given. The command line prints it as one line and exits with 2."""


class RunError(RuntimeError):
    """The run itself failed (disk, device, diverged loss). The command line prints one line and exits with 1."""


def first_line(error: Exception) -> str:
    """What an error of a library says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
