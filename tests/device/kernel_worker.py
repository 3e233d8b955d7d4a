"""Tunes with plain or the NPU's kernels, on CPU tensors: ``kernel_worker.py FILE`` holds a list of [kernels, command line].

Each run writes which operators it called into ``calls-RANK.json`` in its folder of checkpoints.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import warnings
from pathlib import Path


def main() -> None:
    """As ``tests/distributed/worker.py``: a forked child a run, after the imports."""
    warnings.simplefilter("ignore")
    import torch

    import mindspeed_ift.training.tune  # noqa: F401 - for the children
    from tests.device import operators

    operators.install()
    torch.set_num_threads(1)
    for number, (kernels, argv) in enumerate(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))):
        child = multiprocessing.get_context("fork").Process(target=_run, args=(number, kernels, argv))
        child.start()
        child.join()
        if child.exitcode:
            sys.exit(f"run {number} failed: {kernels} {' '.join(argv)}")


def _run(number: int, kernels: str, argv: list[str]) -> None:
    from mindspeed_ift.devices import device, npu
    from tests.device.recording import CALLS
    from tests.distributed.worker import run

    if kernels == "npu":
        device.KERNELS["cpu"] = npu.kernels
        device.current.cache_clear()
    run(number, argv)
    calls = Path(argv[argv.index("--save") + 1]) / f"calls-{os.environ['RANK']}.json"
    calls.write_text(json.dumps(sorted(CALLS)), encoding="utf-8")


if __name__ == "__main__":
    main()
