"""What a run says: its lines, metrics.jsonl, the curve."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from mindspeed_ift.devices.device import Device, current
from mindspeed_ift.training.metrics import TIMINGS, Metrics
from mindspeed_ift.training.step import StepReport
from mindspeed_ift.training.trackers import Trackers


def metrics(folder: Path | None, first: int = 0, interval: int = 2, active: bool = True) -> Metrics:
    return Metrics(folder, current(), world=2, total=5, first=first, interval=interval, active=active)


def report(loss: float) -> StepReport:
    return StepReport(loss=loss, gradient_norm=0.5, learning_rate=1e-3, learnt_tokens=30, tokens=120, real_tokens=90)


def iterations(folder: Path) -> list[int]:
    return [json.loads(line)["iteration"] for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def test_lines_and_records(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shown = metrics(tmp_path / "run")
    for step in range(1, 6):
        shown.step(step, report(1.0 / step))
    shown.evaluation(5, 0.25, 0.125, 3)
    shown.close()
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 2/5", "step 4/5", "step 5/5", "step 5/5"]
    assert "loss 0.5000  lr 1.000e-03  grad norm 0.500  learnt 25 % and pads 25 % of 240 tokens" in lines[0]
    assert "of 120 tokens" in lines[2] and "left 0:00:00" in lines[2] and "tokens/s/device" in lines[0]
    assert lines[3] == "step 5/5  validation loss 0.2500  best 0.1250 after step 3"
    first, *_, last = (tmp_path / "run/metrics.jsonl").read_text("utf-8").splitlines()
    record = json.loads(first)
    timings = {name: record.pop(name) for name in TIMINGS if name in record}
    assert set(TIMINGS) - timings.keys() == {"mfu"} and all(value > 0 for value in timings.values())
    assert timings["real_tokens_per_second"] == pytest.approx(0.75 * timings["tokens_per_second"])
    assert record == {
        "iteration": 1,
        "loss": 1.0,
        "gradient_norm": 0.5,
        "learning_rate": 1e-3,
        "learnt_tokens": 30,
        "tokens": 120,
        "real_tokens": 90,
        "squared_lengths": 0,
        "padding_share": 0.25,
    }
    assert json.loads(last) == {"iteration": 5, "validation_loss": 0.25}
    assert (tmp_path / "run/loss.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"metrics.jsonl", "loss.png"}


def test_steps_that_are_done_again_are_written_once(tmp_path: Path) -> None:
    """Also a line that a killed process left half."""
    shown = metrics(tmp_path)
    for step in range(1, 5):
        shown.step(step, report(1.0))
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"iteration": 5, "lo')
    resumed = metrics(tmp_path, first=2)
    assert iterations(tmp_path) == [1, 2]
    resumed.step(3, report(2.0))
    assert iterations(tmp_path) == [1, 2, 3]


def test_other_ranks_and_runs_without_a_folder_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = metrics(tmp_path / "run", active=False)
    silent.step(2, report(1.0))
    silent.evaluation(2, 1.0, None, None)
    silent.close()
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    spoken = metrics(None)
    spoken.step(2, report(1.0))
    spoken.close()
    assert "step 2/5" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_run_that_did_nothing_has_a_curve_too(tmp_path: Path) -> None:
    metrics(tmp_path).close()
    assert (tmp_path / "loss.png").is_file() and iterations(tmp_path) == []


def test_a_refused_step_is_recorded_without_its_numbers_and_counted_from_then_on(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shown = metrics(tmp_path, interval=1)
    refused = dataclasses.replace(report(math.nan), refusal="the loss is nan")
    shown.step(1, refused, 1)
    assert capsys.readouterr().out == ""
    shown.step(2, report(1.0), 1)
    assert capsys.readouterr().out.strip().endswith("skipped 1")
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines())
    assert first["refused"] == "the loss is nan" and not {"loss", "gradient_norm"} & first.keys()
    assert first["skipped_steps"] == second["skipped_steps"] == 1 and second["loss"] == 1.0


def test_the_share_of_the_peak_counts_the_time_of_steps_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the device knows its peak: two devices of 1000 operations a second, of which a step needs 500 in a second."""
    now = iter((0.0, 10.0, 11.0, 11.0, 11.0))
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    monkeypatch.setattr(Device, "peak_operations", lambda device: 1000.0)
    shown = Metrics(
        tmp_path, current(), world=2, total=1, first=0, interval=1, active=True, operations=lambda report: 500.0
    )
    shown.begin()
    shown.step(1, report(1.0))
    (record,) = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines())
    assert (record["seconds"], record["mfu"], record["tokens_per_second"]) == (1.0, 0.25, 120.0)
    line = capsys.readouterr().out
    assert "60 tokens/s/device  90 tokens/s without pads  MFU 25.0 %  1.00 s/step" in line


def test_trackers_get_what_the_file_gets(tmp_path: Path) -> None:
    got: list[tuple[int, dict]] = []

    class Tracker:
        def write(self, step: int, numbers: dict) -> None:
            got.append((step, numbers))

        def close(self) -> None:
            got.append((0, {}))

    trackers = Trackers([("a tracker", Tracker)])
    shown = Metrics(tmp_path, current(), world=1, total=9, first=3, interval=1, active=True, trackers=trackers)
    shown.step(4, report(1.0))
    shown.evaluation(4, 0.5, None, None)
    shown.close()
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert got == [(one.pop("iteration"), one) for one in written] + [(0, {})]
