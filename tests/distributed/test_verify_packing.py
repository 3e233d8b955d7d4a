"""verify-packing in the user's own layout, on as many ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.worlds import run
from tests.training_runs import make_datasets

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def test_two_ranks_share_each_row(tmp_path: Path) -> None:
    data = make_datasets(tmp_path)["packed"]
    flags = "--preset qwen3-8b --train-iters 3 --seq-length 128 --reset-attention-mask --reset-position-ids --bf16"
    flags += " --micro-batch-size 2 --context-parallel-size 2"
    printed = run([["--data-path", str(data), *flags.split()]], 2, "tests.distributed.verify_worker")
    assert printed.count("holds") == 8 and printed.count("packed rows teach") == 1
    assert "one process" not in printed
