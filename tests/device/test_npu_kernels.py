"""The NPU's kernels on the real torch_npu, with reference mathematics in the place of the hardware."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.device import torch_npu_wheel
from tests.device.checks import assert_passed, report_of

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
    """What pytest says of all checks."""
    return report_of("on_torch_npu", torch_npu_wheel.environment(stand_ins), "-p", PLUGIN)


@pytest.mark.parametrize("checks", CHECKS, ids=lambda path: path.stem)
def test_checks_on_torch_npu(report: str, checks: Path) -> None:
    assert_passed(report, checks)


def test_megatron_takes_the_npu_for_cuda(stand_ins: Path) -> None:
    """With torch_npu's own redirection, in a process of its own, which it changes for good."""
    command = [sys.executable, str(HERE / "prepared.py")]
    environment = torch_npu_wheel.environment(stand_ins)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
