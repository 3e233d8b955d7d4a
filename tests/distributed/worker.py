"""Runs several training command lines one after another in one torchrun: ``worker.py FILE`` holds a list of them.

A line may begin with a number: of the ranks that run it, the first ones, if not all.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path


def main() -> None:
    """Tune once for each command line of the JSON file.

    Each run is a child forked after the imports, which take longer than a tiny run: the threads of its process groups end
    with it, of which a few dozen runs in one process would leave thousands.
    """
    warnings.simplefilter("ignore")
    import torch

    import mindspeed_ift.training.tune  # noqa: F401 - for the children
    from mindspeed_ift.mcore import P2PCommunicator

    P2PCommunicator._communicate_shapes = _asks_for_shapes  # of no run: all ranks know the lengths of all rows

    torch.set_num_threads(1)
    for number, argv in enumerate(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))):
        if argv[0].isdigit() and int(os.environ["RANK"]) >= int(argv[0]):
            continue
        child = multiprocessing.get_context("fork").Process(target=run, args=(number, argv))
        child.start()
        child.join()
        if child.exitcode != int(argv[0] == "hang"):
            sys.exit(f"run {number} failed: {' '.join(argv)}")


def _asks_for_shapes(*_: object) -> None:
    raise AssertionError("a pipeline stage asked another for the shape of what it will receive")


def run(number: int, argv: list[str]) -> None:
    """One run, in a world of its own that meets in torchrun's store."""
    import torch.distributed as dist

    from mindspeed_ift.cli.tune import main as tune

    store, rank, size = next(dist.rendezvous("env://"))
    if argv[0].isdigit():
        size, argv = int(argv[0]), argv[1:]
        os.environ["WORLD_SIZE"] = str(size)
    # Keys of its own in torchrun's store, which all runs share.
    world = dist.PrefixStore(f"run {number}", store)
    dist.init_process_group("gloo", store=world, rank=rank, world_size=size, timeout=timedelta(minutes=3))
    tune(argv)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
