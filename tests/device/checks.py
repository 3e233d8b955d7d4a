"""Runs checks, which are tests of a process of their own: torch_npu cannot be imported where the other tests run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.device import torch_npu_wheel

HERE = Path(__file__).parent


def report_of(folder: str, environment: dict[str, str], *options: str) -> str:
    """What pytest says of the ``check_*.py`` of ``folder``, all in one process, which takes long to import what it needs."""
    named = ["python_files=check_*.py", "python_functions=check_*", "addopts=--import-mode=importlib"]
    command = [sys.executable, "-m", "pytest", "-rA", "-q", "-W", "ignore", "-p", "no:cacheprovider", *options]
    for setting in named:
        command += ["-o", setting]
    done = subprocess.run(
        [*command, str(HERE / folder)],
        cwd=torch_npu_wheel.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def assert_passed(report: str, checks: Path) -> None:
    """Fail unless all of a file's checks ran and passed."""
    lines = [line for line in report.splitlines() if f"{checks.name}::" in line]
    passed = [line for line in lines if line.startswith("PASSED")]
    assert passed and not [line for line in lines if line.startswith(("FAILED", "ERROR"))], report[-8000:]
