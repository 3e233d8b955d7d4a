"""SIGTERM and SIGINT: the first asks the run to stop after the step it is in, the second ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether this process was asked to stop, and by what.

    Attributes:
        signal: name of the signal, or None.
    """

    def __init__(self) -> None:
        self.signal: str | None = None

    def __call__(self) -> bool:
        return self.signal is not None


@contextmanager
def listening(wanted: bool = True) -> Iterator[StopRequest]:
    """Take the signals' first arrival as a request, while the block lasts.

    Args:
        wanted: False changes nothing: a run that saves nothing has nothing to lose.
    """
    request = StopRequest()
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield request  # signals are the main thread's
        return
    # What the shell has told us to ignore stays ignored: Ctrl-C for those in its background.
    found = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {number: handler for number, handler in found.items() if handler != signal.SIG_IGN}

    def note(number: int, frame: Any) -> None:
        request.signal = signal.Signals(number).name
        for one in before:
            signal.signal(one, signal.SIG_DFL if one == signal.SIGTERM else signal.default_int_handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
