"""The front door, as a stranger opens it: one command to trained answers, and what a second run does."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = 6
VOCABULARY = 151669
SKIPPED = "done before and unchanged"

pytestmark = pytest.mark.slow


def _quickstart(out: Path) -> str:
    environment = dict(os.environ, PYTHON=sys.executable, OUT=str(out), MINDSPEED_IFT_DEVICE="cpu")
    environment.pop("OMP_NUM_THREADS", None)  # as a stranger has it: all cores
    command = ["bash", str(ROOT / "examples/qwen3/quickstart.sh")]
    done = subprocess.run(command, env=environment, cwd=out.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_quickstart_answers_as_trained_and_skips_what_is_done(tmp_path: Path) -> None:
    """The first run trains; the second skips all of it; what was damaged in between is made anew, and no more."""
    out = tmp_path / "quickstart"
    printed = _quickstart(out)
    assert SKIPPED not in printed
    assert printed.count("\nstep ") == 500 and "the answers are the trained ones" in printed
    assert "> What is 7 times 8?\n7 times 8 is 56.\n" in printed
    assert (out / "run/loss.png").read_bytes().startswith(b"\x89PNG")
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(answers) == 3
    _better_after(out / "evaluation/heldout.json")
    assert "12 records" in printed and "of 12 records is lower after" in printed

    assert _quickstart(out).count(SKIPPED) == STAGES

    weights = out / "hf/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert _quickstart(out).count(SKIPPED) == STAGES - 1
    assert weights.read_bytes() == whole


def _better_after(result: Path) -> None:
    """On records that it was not tuned on the model knows nothing before, and a good part of each answer after."""
    content = json.loads(result.read_text(encoding="utf-8"))
    before, after = content["models"]
    assert before["loss"] == pytest.approx(math.log(VOCABULARY), rel=0.05) and after["loss"] < 0.7 * before["loss"]
    better = [new["loss"] < old["loss"] for old, new in (item["models"] for item in content["items"])]
    assert len(better) == 12 and sum(better) >= 10
