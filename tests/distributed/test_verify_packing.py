"""verify-packing in the user's own layout, as torchrun starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training_runs import ROOT, make_datasets

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def test_two_ranks_share_each_row(tmp_path: Path) -> None:
    data = make_datasets(tmp_path)["packed"]
    flags = "--preset qwen3-8b --train-iters 3 --seq-length 128 --reset-attention-mask --reset-position-ids --bf16"
    flags += " --micro-batch-size 2 --context-parallel-size 2"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "tools/verify_packing.py"), "--data-path", str(data), *flags.split()]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", MINDSPEED_IFT_DEVICE="cpu")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("holds") == 8 and done.stdout.count("packed rows teach") == 1
    assert "one process" not in done.stdout
