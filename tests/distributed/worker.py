"""A training command line, on each rank of a world."""

from __future__ import annotations

import mindspeed_ift.cli.tune
from mindspeed_ift.mcore import TAKES_COMMUNICATOR, P2PCommunicator


def run_line(words: list[str]) -> None:
    """Tune."""
    if TAKES_COMMUNICATOR:
        P2PCommunicator._communicate_shapes = _asks_for_shapes  # of no run: all ranks know the lengths of all rows
    mindspeed_ift.cli.tune.main(words)


def _asks_for_shapes(*_: object) -> None:
    raise AssertionError("a pipeline stage asked another for the shape of what it will receive")
