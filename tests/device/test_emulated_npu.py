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
from tests.training_runs import gradient_norms, losses, make_datasets, make_hugging_face_model

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

SCRIPTS = torch_npu_wheel.ROOT / "examples/qwen3"
STEPS = 3
CONSTANT = ("--lr-decay-style", "constant")  # so that a run of fewer steps is the start of one of more
MODES = {"dynamic": ("tune_qwen3_8b.sh", "single"), "packed": ("tune_qwen3_8b_pack.sh", "packed")}
"""Mode -> script and dataset."""


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the device."""
    try:
        return environment(tmp_path_factory.mktemp("cann"))
    except torch_npu_wheel.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, emulated: dict[str, str]) -> Path:
    """With datasets, a tokenizer, a model, and each mode's run of one more step on the CPU, ``cpu-MODE``."""
    made = tmp_path_factory.mktemp("emulated")
    make_datasets(made)
    make_hugging_face_model(made / "model", tied=True, vocab_size=400)
    for mode in MODES:
        variables = {"SAVE": str(made / f"cpu-{mode}"), "DEVICES": "1", "TRAIN_ITERS": str(STEPS + 1)}
        said = _tune(mode, made, dict(os.environ, MINDSPEED_IFT_DEVICE="cpu"), **variables)
        assert "device: cpu" in said
    return made


def test_the_device_does_what_it_says(emulated: dict[str, str]) -> None:
    report = report_of("on_emulated_npu", emulated)
    for checks in (HERE / "on_emulated_npu").glob("check_*.py"):
        assert_passed(report, checks)


def test_one_device_trains_exports_and_answers_as_the_cpu(emulated: dict[str, str], folder: Path) -> None:
    saved, exported = str(folder / "one"), str(folder / "exported")
    assert "device: npu" in _tune("dynamic", folder, emulated, SAVE=saved, DEVICES="1")
    _assert_as_on_cpu(folder / "one", folder / "cpu-dynamic", STEPS)
    _script("ckpt_convert_qwen3_mcore2hf.sh", folder, emulated, LOAD=saved, HF_OUTPUT=exported)
    ask = ("--prompt", "add 3 and 6")
    variables = {"LOAD": exported, "TOKENIZER": str(folder / "tokenizer"), "MAX_NEW_TOKENS": "6"}
    answers = []
    for of_device in (emulated, dict(os.environ, MINDSPEED_IFT_DEVICE="cpu")):
        said = _script("generate_qwen3_8b.sh", folder, of_device, *ask, **variables)
        answers.append(said[said.index("> add 3 and 6") :])
    assert answers[0] == answers[1] and answers[0].removeprefix("> add 3 and 6").strip()


def test_two_devices_share_packed_rows_and_go_on(emulated: dict[str, str], folder: Path) -> None:
    """In a ring, with a distributed optimizer; resumed with gathered keys and values."""
    variables = {"SAVE": str(folder / "two"), "DEVICES": "2", "CP": "2"}
    said = _tune("packed", folder, emulated, **variables)
    assert "device: npu" in said and "context 2" in said
    more = {"TRAIN_ITERS": str(STEPS + 1), "CP_ALGO": "kvallgather_cp_algo"}
    assert f"resuming after step {STEPS}" in _tune("packed", folder, emulated, **variables, **more)
    _assert_as_on_cpu(folder / "two", folder / "cpu-packed", STEPS + 1)


def test_four_devices_in_two_stages_of_split_layers(emulated: dict[str, str], folder: Path) -> None:
    """Tensor and pipeline parallel: point to point among stages."""
    said = _tune("packed", folder, emulated, SAVE=str(folder / "four"), DEVICES="4", TP="2", PP="2")
    assert "device: npu" in said and "tensor 2 x pipeline 2" in said
    _assert_as_on_cpu(folder / "four", folder / "cpu-packed", STEPS)


def _assert_as_on_cpu(run: Path, expected: Path, steps: int) -> None:
    assert len(losses(run)) == steps and losses(run)[-1] < losses(run)[0]
    assert losses(run) == pytest.approx(losses(expected)[:steps], **LAYOUT_LOSS)
    assert gradient_norms(run) == pytest.approx(gradient_norms(expected)[:steps], **LAYOUT_LOSS)


def _tune(mode: str, folder: Path, of_device: dict[str, str], **variables: str) -> str:
    script, data = MODES[mode]
    given = {"SMOKE": "1", "SEQ_LENGTH": "128", "TRAIN_ITERS": str(STEPS), "LR": "1e-3", "MIN_LR": "1e-4"}
    given |= {"DATA_PATH": str(folder / data), "HF_MODEL": str(folder / "model")}
    tokenizer = ("--tokenizer-name-or-path", str(folder / "tokenizer"))
    return _script(script, folder, of_device, *tokenizer, *CONSTANT, **(given | variables))


def _script(name: str, folder: Path, of_device: dict[str, str], *flags: str, **variables: str) -> str:
    """What a script of the examples says, unmodified."""
    given = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "LOG_DIR": str(folder / "logs")}
    command = ["bash", str(SCRIPTS / name), *flags]
    done = subprocess.run(
        command, env=of_device | given | variables, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    return done.stdout
