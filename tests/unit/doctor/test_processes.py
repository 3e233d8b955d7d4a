"""A process of the doctor that dies, hangs or never begins is a red line; the doctor goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mindspeed_ift.devices.diagnosis.finding import Finding
from mindspeed_ift.doctor.processes import run_apart

HEAD = """
import os, sys, time
from pathlib import Path
from mindspeed_ift.devices.diagnosis.finding import Account, Finding
account = Account(Path(sys.argv[1]))
account.step("one", lambda: [Finding("one", "green", " ".join(sys.argv[2:]))])
account.tell(kind="cpu")
def bad():
    print("what it said last", file=sys.stderr, flush=True)
    """


def run(body: str, folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float = 60) -> list[Finding]:
    (folder / "patient.py").write_text(f"{HEAD}{body}\naccount.step('two', bad)\naccount.end()\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    told = run_apart("patient", ["a", "b"], "begin", "the remedy", seconds)
    assert told.facts == {"kind": "cpu"} and told.findings[0] == Finding("one", "green", "a b")
    return told.findings[1:]


def test_one_that_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("return []", tmp_path, monkeypatch) == []


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("os.abort()", "its process was killed by signal 6; its last words: what it said last"),
        ("os._exit(3)", "its process ended with 3; its last words: what it said last"),
    ],
)
def test_one_that_dies(body: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(body, tmp_path, monkeypatch) == [Finding("two", "red", found, "the remedy")]


def test_one_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    (finding,) = run("time.sleep(600)", tmp_path, monkeypatch, seconds=8)
    assert finding.name == "two" and "took longer than 8 seconds" in finding.found
    assert time.monotonic() - start < 60


def test_one_that_cannot_begin() -> None:
    (finding,) = run_apart("there_is_no_such_module", [], "begin", "the remedy", 60).findings
    assert (finding.name, finding.level) == ("begin", "red") and "there_is_no_such_module" in finding.found
