"""As `worker.py`; a command line may begin with the name of something that happens to one rank, and to no other."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mindspeed_ift.data.batch import Batch
from mindspeed_ift.data.micro_batches import MicroBatches
from mindspeed_ift.training import watchdog
from tests.distributed import worker

CONSUMED = 8
"""Samples before the third step, of four each."""


def poison(batches: list[Batch]) -> None:
    """A weight of the loss that is no number."""
    batches[0].loss_mask[0, 0] = math.nan


def stop(batches: list[Batch]) -> None:
    """What a scheduler sends."""
    os.kill(os.getpid(), signal.SIGTERM)


def damage(folder: Path) -> None:
    """One bit of what the last rank reads in the newest checkpoint, its size as it was."""
    path = folder / "iter_0000004/__1_1.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def hang(batches: list[Batch]) -> None:
    """What a lost device does."""
    time.sleep(600)


EVENTS: dict[str, Callable[[list[Batch]], None]] = {"poison": poison, "stop": stop, "hang": hang}


def run_line(argv: list[str]) -> None:
    """Tune, with the event that the line names."""
    if argv[0] == "damage":
        if last_rank():
            damage(Path(argv[argv.index("--load") + 1]))
    elif argv[0] in EVENTS:
        if argv[0] == "hang":
            watchdog.MINUTE = 1.0
        happen(EVENTS[argv[0]])
    else:
        worker.run_line(argv)
        return
    worker.run_line(argv[1:])


def happen(event: Callable[[list[Batch]], None]) -> None:
    """On the last rank alone."""
    take = MicroBatches.take

    def eventful(self: MicroBatches, consumed: int, count: int) -> Any:
        batches = take(self, consumed, count)
        if consumed == CONSUMED and last_rank():
            event(batches)
        return batches

    MicroBatches.take = eventful  # type: ignore[method-assign]


def last_rank() -> bool:
    """Whether this is the process that things happen to."""
    return int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
