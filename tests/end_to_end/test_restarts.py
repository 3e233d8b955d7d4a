"""torchrun --max-restarts: a rank is killed, and the run ends as if nothing had happened, by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training_runs import MODES, ROOT, losses, make_datasets, make_hugging_face_model

pytestmark = pytest.mark.slow

STEPS = 40


def test_a_killed_rank_is_gone_on_without(tmp_path: Path) -> None:
    """SIGKILL of one of two ranks after a checkpoint; --load names the weights that the run began with."""
    data = make_datasets(tmp_path)["packed"]
    weights = make_hugging_face_model(tmp_path / "hf", tied=True, vocab_size=400)
    save, metrics = tmp_path / "run", tmp_path / "run/metrics.jsonl"
    words = ["--data-path", str(data), *MODES["packed"], "--global-batch-size", "4", "--train-iters", str(STEPS)]
    words += ["--lr", "1e-3", "--load", str(weights), "--enable-hf2mg-convert", "--save", str(save)]
    words += ["--save-interval", "2", "--keep-last", "2", "--async-save", "--use-distributed-optimizer"]
    launcher = [sys.executable, "-m", "mindspeed_ift.cli.torchrun", "--standalone", "--nproc_per_node", "2"]
    launcher += ["--max_restarts", "1", str(ROOT / "tools/posttrain_gpt.py")]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", MINDSPEED_IFT_DEVICE="cpu")
    process = subprocess.Popen([*launcher, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    until = time.monotonic() + 300
    while not metrics.is_file() or len(metrics.read_text("utf-8").splitlines()) < 5:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [child for child in children if "posttrain_gpt.py" in Path(f"/proc/{child}/cmdline").read_text()]
    os.kill(int(ranks[-1]), signal.SIGKILL)
    output = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, output
    assert output.count("weights: ") == 2 and f"started again by torchrun: going on from {save}" in output, output
    resumed = [line for line in output.splitlines() if line.startswith("resuming after step ")]
    assert len(resumed) == 1 and int(resumed[0].split()[-1]) >= 2
    assert len(losses(save)) == STEPS, "each step once"
    assert (save / "latest_checkpointed_iteration.txt").read_text() == f"{STEPS}\n"
    assert len(list(save.glob("iter_*"))) == 2 and not list(save.glob(".*"))
