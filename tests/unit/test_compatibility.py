"""The script that tries sets of versions: what pip is held to, and how a report is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mindspeed_ift.devices.diagnosis.versions import known_sets
from tests.scripts import ROOT, load


@pytest.fixture(scope="module")
def script() -> Any:
    return load("ci/compatibility.py")


def test_the_base_is_what_every_test_runs_on(script: Any) -> None:
    base = script.SETS["base"]
    assert script.constraints(base) == script.constraints(script.Versions("3.11", {}))
    assert base.pins == {name: f"=={version}" for name, version in known_sets()[0].packages.items()}


def test_a_set_replaces_what_it_names(script: Any) -> None:
    lines = script.constraints(script.Versions("3.11", {"torch": "==2.6.0"})).split()
    assert "torch==2.6.0" in lines and len([line for line in lines if line.startswith("torch=")]) == 1
    assert f"megatron-core=={known_sets()[0].packages['megatron-core']}" in lines
    assert script.constraints(script.Versions("3.12", {"torch": "==2.6.0"}, newest=True)) == "torch==2.6.0\n"


def test_what_is_run_is_there(script: Any) -> None:
    paths = [word for words in script.CHECKS.values() for word in words if word.startswith("tests/")]
    assert len(paths) > len(script.CHECKS) and all((ROOT / path).exists() for path in paths)


def test_a_check_is_not_tried_on_a_set_without_it(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "BUILD", tmp_path)
    for name, value in {"install": (Path("python"), ""), "run_check": ("ok", ""), "installed": {}}.items():
        monkeypatch.setattr(script, name, lambda *_, value=value: value)
    out = tmp_path / "results.json"
    words = ["--checks", "unit", "npu", "--keep", "--output", str(out)]
    assert script.main(["--sets", "torch-2.14", "newest", *words]) == 0
    rows = [row for one in json.loads(out.read_text(encoding="utf-8"))["sets"].values() for row in one["rows"]]
    assert [row["check"] for row in rows] == ["install", "unit", "npu", "install", "unit"]


@pytest.mark.parametrize(
    ("cases", "code", "result", "told"),
    [
        ("<testcase name='a'/><testcase name='b'><skipped/></testcase>", 0, "ok", "1 passed, 0 failed, 1 skipped"),
        ("<testcase name='a'/><testcase name='b'><failure/></testcase>", 1, "failed", "1 failed, 0 skipped: b"),
        ("<testcase name='a'/><testcase name='b'><error/></testcase>", 1, "failed", "1 failed, 0 skipped: b"),
        ("<testcase name='a'><skipped/></testcase>", 0, "failed", "0 passed"),
        ("<testcase name='a'/>", 3, "failed", "1 passed"),
        ("", 5, "failed", "0 passed"),
    ],
)
def test_a_report_is_judged(script: Any, cases: str, code: int, result: str, told: str) -> None:
    found = script.judge(f"<testsuites><testsuite>{cases}</testsuite></testsuites>", code)
    assert found[0] == result and told in found[1]


def test_without_the_interpreter_the_set_has_failed(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHON_3_11", "no-such-python")
    monkeypatch.setattr(script, "BUILD", tmp_path / "build")
    out = tmp_path / "results.json"
    assert script.main(["--sets", "base", "--output", str(out)]) == 1
    (row,) = json.loads(out.read_text(encoding="utf-8"))["sets"]["base"]["rows"]
    assert row["check"] == "install" and row["result"] == "failed" and "python3.11" in row["told"]
    assert "PYTHON_3_11" in row["told"] and row["told"] in capsys.readouterr().out
