"""A training command line with plain or the NPU's kernels, on CPU tensors, on each rank of a world.

Each rank writes which operators it called into ``calls-RANK.json`` in the run's folder of checkpoints.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from mindspeed_ift.devices import device, npu
from tests.device import operators
from tests.device.recording import CALLS
from tests.distributed import worker

operators.install()


def run_line(words: list[str]) -> None:
    """Tune, with the kernels that the first word names."""
    kernels, *words = words
    if kernels == "npu":
        device.KERNELS["cpu"] = npu.kernels
        device.current.cache_clear()
    worker.run_line(words)
    calls = Path(words[words.index("--save") + 1]) / f"calls-{os.environ['RANK']}.json"
    calls.write_text(json.dumps(sorted(CALLS)), encoding="utf-8")
