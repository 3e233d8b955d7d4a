"""The doctor as a command: what it prints, its exit code, and a run on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindspeed_ift.cli.doctor import main
from mindspeed_ift.devices.diagnosis.finding import LEVELS, Finding
from mindspeed_ift.devices.kernels.probes import PROBED
from mindspeed_ift.doctor import examine

ROOT = Path(__file__).resolve().parents[3]
GREEN, YELLOW = Finding("torch", "green", "2.13.0"), Finding("/dev/shm", "yellow", "0.50 GiB", "--shm-size=16g")
RED = Finding("megatron-core", "red", "not installed", "pip install megatron-core==0.16.1")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words that examine gets; it answers with `findings`."""
    words: list[list[str]] = []

    def answer(given: list[str]) -> list[Finding]:
        words.append(given)
        return list(findings)

    findings[:] = [GREEN, YELLOW, RED]
    monkeypatch.setattr(examine, "examine", answer)
    return words


findings: list[Finding] = []


def test_lines_to_read(asked: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--load", "x"]) == 1 and asked == [["--load", "x"]]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("mindspeed-ift ")
    assert [line.split() for line in said[1:4]] == [
        ["green", "torch", "2.13.0"],
        ["yellow", "/dev/shm", "0.50", "GiB"],
        ["->", "--shm-size=16g"],
    ]
    assert said[-2].strip() == f"-> {RED.remedy}" and said[-1] == "1 red, 1 yellow, 1 green"


def test_json(asked: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 1 and asked == [[]]
    content = json.loads(capsys.readouterr().out)
    assert set(content) == {"mindspeed_ift", "time", "level", "findings"} and content["level"] == "red"
    assert content["findings"][1] == {
        "name": "/dev/shm",
        "level": "yellow",
        "found": "0.50 GiB",
        "remedy": "--shm-size=16g",
    }


def test_yellow_is_no_failure(asked: list[list[str]]) -> None:
    findings.remove(RED)
    assert main([]) == 0


def test_this_machine() -> None:
    """As the first process that a user starts."""
    start = time.monotonic()
    environment = dict(os.environ, PYTHONPATH=str(ROOT), MINDSPEED_IFT_DEVICE="cpu")
    done = subprocess.run(
        [sys.executable, "-m", "mindspeed_ift.cli.main", "doctor", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert not done.stderr, done.stderr
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert all(one["level"] in LEVELS and (one["level"] == "green" or one["remedy"]) for one in found.values())
    names = {"import torch", "device", "import megatron.core", "collective", *(f"kernel {group}" for group in PROBED)}
    assert {found[name]["level"] for name in names} == {"green"}
    assert "2 ranks over gloo" in found["collective"]["found"]
    assert done.returncode == int("red" in {one["level"] for one in found.values()})
    assert time.monotonic() - start < 120, "20 seconds on a machine that does nothing else"


def test_a_broken_torch_does_not_end_the_doctor(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os\nprint('no driver', flush=True)\nos.abort()\n", encoding="utf-8")
    code = f"import sys; sys.path.append({str(ROOT)!r}); from mindspeed_ift.cli.main import console; console()"
    environment = dict(os.environ, PYTHONPATH=f"{tmp_path}:{ROOT}")
    words = [sys.executable, "-c", code, "doctor", "--json"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=300)
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1 and found["collective"]["level"] == "yellow"
    assert found["import torch"]["level"] == "red" and "no driver" in found["import torch"]["found"]
