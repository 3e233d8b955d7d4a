"""The doctor's process on the emulated NPU: it finds eight devices, and every kernel that the emulation serves is right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_ift.devices.diagnosis.finding import read_account
from mindspeed_ift.devices.kernels.probes import PROBED
from tests.device import torch_npu_wheel
from tests.device.emulated_npu.environment import environment

pytestmark = pytest.mark.slow


def test_what_it_finds(tmp_path: Path) -> None:
    try:
        of_device = environment(tmp_path)
    except torch_npu_wheel.Unavailable as reason:
        pytest.skip(str(reason))
    account = tmp_path / "account"
    words = [sys.executable, "-m", "mindspeed_ift.doctor.probing", str(account)]
    done = subprocess.run(words, env=of_device, capture_output=True, text=True, check=False, timeout=300)
    told = read_account(account, "begin")
    assert done.returncode == 0 and told.unfinished is None, (told.unfinished, done.stderr[-3000:])
    assert (told.facts["kind"], told.facts["backend"], told.facts["devices"]) == ("npu", "hccl", 8)
    levels = {one.name: one.level for one in told.findings}
    unserved = {one.name for one in told.findings if "no kernel of the emulated NPU serves it" in one.found}
    kernels = {f"kernel {group}" for group in PROBED}
    assert kernels <= set(levels) and len(kernels - unserved) >= 7
    assert {levels[name] for name in kernels - unserved} == {"green"}
    assert {f"device {number}" for number in range(8)} <= set(levels) and levels["import megatron.core"] == "green"
