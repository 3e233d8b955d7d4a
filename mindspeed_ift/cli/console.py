"""Where commands print tables and coloured text."""

from __future__ import annotations

import errno
import sys
from typing import NoReturn

import rich.console


class Console(rich.console.Console):
    """Standard output; what it prints is not broken in two where that is a file.

    Args:
        width: Of a line in a file, which has none of its own.
        soft_wrap: Leave the breaking of lines to the terminal.
    """

    def __init__(self, width: int = 160, soft_wrap: bool = False) -> None:
        super().__init__(highlight=False, soft_wrap=soft_wrap, width=None if sys.stdout.isatty() else width)

    def on_broken_pipe(self) -> NoReturn:
        """Leave the end to `command.run`, as for text that is printed without rich."""
        raise BrokenPipeError(errno.EPIPE, "nobody reads standard output any more")
