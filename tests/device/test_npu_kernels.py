"""The NPU's kernels on the real torch_npu, with reference mathematics in the place of the hardware."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.device import torch_npu_wheel

HERE = Path(__file__).parent
PLUGIN = "tests.device.on_torch_npu.plugin"
CHECKS = sorted((HERE / "on_torch_npu").glob("check_*.py"))


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for the CANN libraries."""
    try:
        return torch_npu_wheel.build_stand_ins(tmp_path_factory.mktemp("cann"))
    except torch_npu_wheel.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def report(stand_ins: Path) -> str:
    """What pytest says of all checks, in one process of their own, which takes ten seconds to import what it needs."""
    options = [
        "-o",
        "python_files=check_*.py",
        "-o",
        "python_functions=check_*",
        "-o",
        "addopts=--import-mode=importlib",
    ]
    command = [sys.executable, "-m", "pytest", "-rA", "-q", "-W", "ignore", "-p", "no:cacheprovider", "-p", PLUGIN]
    done = subprocess.run(
        [*command, *options, str(HERE / "on_torch_npu")],
        cwd=torch_npu_wheel.ROOT,
        env=torch_npu_wheel.environment(stand_ins),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("checks", CHECKS, ids=lambda path: path.stem)
def test_checks_on_torch_npu(report: str, checks: Path) -> None:
    lines = [line for line in report.splitlines() if f"{checks.name}::" in line]
    passed = [line for line in lines if line.startswith("PASSED")]
    assert passed and not [line for line in lines if line.startswith(("FAILED", "ERROR"))], report[-8000:]


def test_megatron_takes_the_npu_for_cuda(stand_ins: Path) -> None:
    """With torch_npu's own redirection, in a process of its own, which it changes for good."""
    command = [sys.executable, str(HERE / "prepared.py")]
    environment = torch_npu_wheel.environment(stand_ins)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
