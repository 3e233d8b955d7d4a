"""Device "npu" emulated: the example scripts, as they are, on the real torch_npu without an Ascend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.device import torch_npu_wheel
from tests.device.checks import HERE, assert_passed, report_of
from tests.device.emulated_npu.environment import environment
from tests.tolerances import LAYOUT_LOSS
from tests.training_runs import gradient_norms, losses, make_datasets

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

SCRIPTS = torch_npu_wheel.ROOT / "examples/qwen3"
STEPS = 3


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the device."""
    try:
        return environment(tmp_path_factory.mktemp("cann"))
    except torch_npu_wheel.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With datasets and a tokenizer."""
    made = tmp_path_factory.mktemp("emulated")
    make_datasets(made)
    return made


def test_the_device_does_what_it_says(emulated: dict[str, str]) -> None:
    report = report_of("on_emulated_npu", emulated)
    for checks in (HERE / "on_emulated_npu").glob("check_*.py"):
        assert_passed(report, checks)


def test_tuning_on_the_npu_has_the_losses_of_the_cpu(emulated: dict[str, str], folder: Path) -> None:
    runs = {}
    for name, of_device in (("cpu", dict(os.environ, MINDSPEED_IFT_DEVICE="cpu")), ("npu", emulated)):
        runs[name] = folder / name
        said = _script("tune_qwen3_8b.sh", folder, of_device, SAVE=str(runs[name]), DEVICES="1")
        assert f"device: {name}" in said
    assert losses(runs["npu"]) == pytest.approx(losses(runs["cpu"]), **LAYOUT_LOSS)
    assert gradient_norms(runs["npu"]) == pytest.approx(gradient_norms(runs["cpu"]), **LAYOUT_LOSS)
    assert len(losses(runs["npu"])) == STEPS
    assert (runs["npu"] / "iter_0000003").is_dir()


def _script(name: str, folder: Path, of_device: dict[str, str], *flags: str, **variables: str) -> str:
    """What a script of the examples says, unmodified, with a tiny model."""
    given = {"SMOKE": "1", "SEQ_LENGTH": "128", "TRAIN_ITERS": str(STEPS), "DATA_PATH": str(folder / "single")}
    given |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "LOG_DIR": str(folder / "logs"), **variables}
    flags = ("--tokenizer-name-or-path", str(folder / "tokenizer"), *flags)
    command = ["bash", str(SCRIPTS / name), *flags]
    done = subprocess.run(command, env=of_device | given, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    return done.stdout
