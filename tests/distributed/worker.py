"""A training command line, on each rank of a world."""

from __future__ import annotations

from functools import partial

import mindspeed_ift.cli.tune
from mindspeed_ift.mcore import TAKES_COMMUNICATOR, DistributedDataParallelConfig, P2PCommunicator
from mindspeed_ift.training import optimizer

BUCKET = 10_000
"""Parameters whose gradients, and then weights, are sent together with --overlap-grad-reduce and --overlap-param-gather:
several times, as of a model of a size to use."""


def run_line(words: list[str]) -> None:
    """Tune."""
    if TAKES_COMMUNICATOR:
        P2PCommunicator._communicate_shapes = _asks_for_shapes  # of no run: all ranks know the lengths of all rows
    several = partial(DistributedDataParallelConfig, bucket_size=BUCKET)
    optimizer.DistributedDataParallelConfig = several  # type: ignore[misc,assignment]
    mindspeed_ift.cli.tune.main(words)


def _asks_for_shapes(*_: object) -> None:
    raise AssertionError("a pipeline stage asked another for the shape of what it will receive")
