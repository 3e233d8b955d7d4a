"""The two errors a user sees as one line: what is wrong, where, and how to mend it."""

from __future__ import annotations


class UserError(ValueError):
    """Data or flags cannot be used as given. The command line prints it as one line and exits with 2."""


class RunError(RuntimeError):
    """The run itself failed (disk, device, diverged loss). The command line prints one line and exits with 1."""
