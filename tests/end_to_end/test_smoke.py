"""What a user runs on a new machine, run here on the CPU; and that it fails where it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts import ROOT, load

ALGORITHMS = ("megatron_cp_algo", "ulysses_cp_algo", "hybrid_cp_algo", "kvallgather_cp_algo")


@pytest.mark.slow
@pytest.mark.distributed
def test_on_the_cpu(tmp_path: Path) -> None:
    """Two processes: every row but the algorithm that needs four is as it must be."""
    out = tmp_path / "out"
    environment = dict(os.environ, PYTHON=sys.executable, DEVICE="cpu")
    command = ["bash", str(ROOT / "ci/smoke.sh"), "--output", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    content = json.loads((out / "smoke.json").read_text(encoding="utf-8"))
    results = {row["what"]: row["result"] for row in content["rows"]}
    assert content["device"] == "cpu" and content["processes"] == 2 and content["failed"] == 0
    expected = {f"2 devices, {mode}, {one}" for mode in ("fixed", "dynamic", "packed") for one in ("fp32", "bf16")}
    expected |= {f"2 devices, {name}, {one}" for name in ALGORITHMS if "hybrid" not in name for one in ("fp32", "bf16")}
    expected |= {f"CPU, {mode}, {one}" for mode in ("fixed", "dynamic", "packed") for one in ("fp32", "bf16")}
    expected |= {"doctor", "kernel attention", "kernel adamw", "2 devices, resume", "convert", "generate"}
    assert expected <= {what for what, result in results.items() if result == "ok"}
    assert [what for what, result in results.items() if result == "skipped"] == ["2 devices, hybrid_cp_algo"]
    assert all(f"{row['result']:<8}{row['what']}" in done.stdout for row in content["rows"])
    assert json.loads((out / "answers.jsonl").read_text(encoding="utf-8"))["prompt"] == "3 and 6"


def test_what_is_tried_on_so_many_devices() -> None:
    smoke = load("ci/smoke.py")
    for processes, skipped in ((1, ["all devices"]), (8, []), (6, ["6 devices, hybrid_cp_algo"])):
        one, every, left_out = smoke.trainings(processes, quick=False)
        assert len(one) == 6 and [row.what for row in left_out] == skipped
        every_name = [training.name for training in (*one, *every)]
        assert len(set(every_name)) == len(every_name), "each has a folder of its own"
        names = {training.name.split(", ")[1] for training in every}
        assert processes == 1 or names >= {"fixed", "dynamic", "packed", *ALGORITHMS[:2], ALGORITHMS[3]}
        assert (ALGORITHMS[2] in names) == (processes == 8)


def test_quickly_packed_rows_in_bf16_alone_are_tried() -> None:
    one, every, _ = load("ci/smoke.py").trainings(2, quick=True)
    assert {(training.mode, training.precision) for training in (*one, *every)} == {("packed", "bf16")}
    assert len(one) == 1 and len(every) == 4


def test_losses_that_are_not_the_cpus_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smoke = load("ci/smoke.py")
    one = object.__new__(smoke.Smoke)
    one.folder, one.rows, one.failures = tmp_path, [], {"never": "RuntimeError: no memory"}
    for name, factor in {"CPU, packed, fp32": 1.0, "near": 1 + 5e-5, "far": 1.001, "nan": float("nan")}.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        lines = [json.dumps({"step": step, "loss": (6 - step) * factor}) for step in range(smoke.STEPS)]
        (folder / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "runs/short").mkdir()
    (tmp_path / "runs/short/metrics.jsonl").write_text('{"step": 1, "loss": 6.0}\n', encoding="utf-8")
    for name in ("near", "far", "nan", "short", "never"):
        one.compare(name, name, smoke.Training(name, "packed", "fp32"))
    assert [row.result for row in one.rows] == ["ok", "failed", "failed", "failed", "failed"]
    assert "no memory" in one.rows[-1].told and "failed" in capsys.readouterr().out
