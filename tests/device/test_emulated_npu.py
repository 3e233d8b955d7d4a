"""Device "npu" emulated: the example scripts, as they are, on the real torch_npu without an Ascend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_ift.cli.generate import main as generate
from mindspeed_ift.devices.kernels.probes import PROBED
from mindspeed_ift.parallel import groups as process_groups
from tests.device import torch_npu_wheel
from tests.device.checks import HERE, assert_passed, report_of
from tests.device.emulated_npu.environment import environment
from tests.distributed import worlds
from tests.tolerances import BF16_LAYOUT, LAYOUT_LOSS
from tests.training_runs import gradient_norms, losses, make_datasets, make_hugging_face_model

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

SCRIPTS = torch_npu_wheel.ROOT / "examples/qwen3"
STEPS = 3
CONSTANT = ("--lr-decay-style", "constant")  # so that a run of fewer steps is the start of one of more
RUNS = {
    "dynamic": ("tune_qwen3_8b.sh", "single", "dense", ()),
    "packed": ("tune_qwen3_30b_a3b_pack.sh", "packed", "experts", ()),
    "dense rows": ("tune_qwen3_8b_pack.sh", "packed", "dense", ()),
    "adapters": ("tune_qwen3_8b_lora.sh", "single", "dense", ("--bf16",)),
}
"""Name -> script, dataset, model and flags besides."""
_RECORDER = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$RECORD"
"""


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the device, and a MindSpeed which ends those that import it."""
    try:
        made = environment(tmp_path_factory.mktemp("cann"))
    except torch_npu_wheel.Unavailable as reason:
        pytest.skip(str(reason))
    vendor = tmp_path_factory.mktemp("vendor")
    for name in ("mindspeed", "mindspeed_llm"):
        (vendor / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')\n", encoding="utf-8")
    return made | {"PYTHONPATH": f"{made['PYTHONPATH']}:{vendor}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, emulated: dict[str, str]) -> Path:
    """With datasets, a tokenizer, models, and for each of `RUNS` ``cpu-NAME``: its script's training on one CPU rank."""
    made = tmp_path_factory.mktemp("emulated")
    make_datasets(made)
    make_hugging_face_model(made / "dense", tied=True, vocab_size=400)
    make_hugging_face_model(made / "experts", tied=False, vocab_size=400, experts={})
    recorder, lines = made / "python", []
    recorder.write_text(_RECORDER, encoding="utf-8")
    recorder.chmod(0o755)
    for name in RUNS:
        record = made / f"words-{name}"
        steps = str(STEPS + (name == "packed"))
        taken = {
            "PYTHON": str(recorder),
            "RECORD": str(record),
            "TRAIN_ITERS": steps,
            "SAVE": str(made / f"cpu-{name}"),
        }
        _tune(name, made, dict(os.environ), DEVICES="1", **taken)
        words = record.read_text(encoding="utf-8").splitlines()
        lines.append(words[words.index(str(torch_npu_wheel.ROOT / "tools/posttrain_gpt.py")) + 1 :])
    worlds.run(lines, 1)
    return made


def test_the_device_does_what_it_says(emulated: dict[str, str]) -> None:
    report = report_of("on_emulated_npu", emulated)
    for checks in (HERE / "on_emulated_npu").glob("check_*.py"):
        assert_passed(report, checks)


def test_one_device_trains_exports_and_answers_as_the_cpu(
    emulated: dict[str, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, exported = folder / "one", folder / "exported"
    assert "device: npu" in _tune("dynamic", folder, emulated, SAVE=str(saved), DEVICES="1")
    _assert_as_on_cpu(saved, folder / "cpu-dynamic", STEPS)
    _script("ckpt_convert_qwen3_mcore2hf.sh", folder, emulated, LOAD=str(saved), HF_OUTPUT=str(exported))
    variables = {"LOAD": str(exported), "TOKENIZER": str(folder / "tokenizer"), "MAX_NEW_TOKENS": "6"}
    found = _answer(_script("generate_qwen3_8b.sh", folder, emulated, "--prompt", "add 3 and 6", **variables))
    words = ["--load", str(exported), "--tokenizer-name-or-path", str(folder / "tokenizer"), "--max-new-tokens", "6"]
    generate([*words, "--prompt", "add 3 and 6"])
    process_groups.parallel_state.destroy_model_parallel()
    assert found == _answer(capsys.readouterr().out) and found


def test_two_devices_share_rows_and_experts_and_four_go_on(emulated: dict[str, str], folder: Path) -> None:
    """Packed rows in a ring, half of the experts each; resumed with split layers in two stages, point to point."""
    variables = {"SAVE": str(folder / "shared"), "EP": "2"}
    said = _tune("packed", folder, emulated, **variables, DEVICES="2", CP="2")
    assert "device: npu" in said and "context 2" in said and "npu_grouped_matmul" in said
    more = {"DEVICES": "4", "TP": "2", "PP": "2", "TRAIN_ITERS": str(STEPS + 1)}
    said = _tune("packed", folder, emulated, **variables, **more)
    assert f"resuming after step {STEPS}" in said and "tensor 2 x pipeline 2" in said
    _assert_as_on_cpu(folder / "shared", folder / "cpu-packed", STEPS + 1)


@pytest.mark.parametrize(("algorithm", "devices"), [("kvallgather", 2), ("ulysses", 2), ("hybrid", 4)])
def test_devices_share_rows_by_other_algorithms(
    emulated: dict[str, str], folder: Path, algorithm: str, devices: int
) -> None:
    """Keys and values gathered; positions exchanged for heads; and a ring of such exchanges."""
    variables = {"SAVE": str(folder / algorithm), "CP_ALGO": f"{algorithm}_cp_algo", "TRAIN_ITERS": "2"}
    flags = ("--ulysses-degree-in-cp", "2") if algorithm == "hybrid" else ()
    count = str(devices)
    said = _tune("dense rows", folder, emulated, *flags, **variables, DEVICES=count, CP=count)
    assert "device: npu" in said and f"context {count}" in said
    _assert_as_on_cpu(folder / algorithm, folder / "cpu-dense rows", 2)


def test_two_devices_train_adapters_in_bf16(emulated: dict[str, str], folder: Path) -> None:
    """Data parallel alone."""
    said = _tune("adapters", folder, emulated, SAVE=str(folder / "adapters"), DEVICES="2")
    assert "device: npu" in said and "data 2" in said and "adapters: fresh" in said
    found, expected = losses(folder / "adapters"), losses(folder / "cpu-adapters")
    assert len(found) == STEPS and found[-1] < found[0] and found == pytest.approx(expected, **BF16_LAYOUT)


def test_the_smoke_run_of_a_machine_with_one_device(emulated: dict[str, str], tmp_path: Path) -> None:
    """As its user starts it, but quick. Nothing fails but that the doctor finds no CANN, driver and firmware on the disk."""
    command = ["bash", str(torch_npu_wheel.ROOT / "ci/smoke_npu.sh"), "--quick", "--output", str(tmp_path / "out")]
    of_machine = emulated | {"PYTHON": sys.executable, "ASCEND_RT_VISIBLE_DEVICES": "0"}
    done = subprocess.run(command, env=of_machine, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout[-6000:] + done.stderr
    content = json.loads((tmp_path / "out/smoke.json").read_text(encoding="utf-8"))
    assert (content["device"], content["processes"]) == ("npu", 1)
    failed = [row["what"] for row in content["rows"] if row["result"] == "failed"]
    assert failed in ([], ["doctor"]) and done.returncode == len(failed), content["rows"]
    levels = {one["name"]: one["level"] for one in content["doctor"]}
    missing = {"CANN", "Ascend driver", "Ascend firmware"}
    assert {name for name, level in levels.items() if level == "red"} <= missing
    good = {row["what"] for row in content["rows"] if row["result"] == "ok"}
    assert good >= {f"kernel {group}" for group in PROBED} | {"1 device, packed, bf16", "convert", "generate"}
    assert "1 device, resume" in good and "device 0" in levels and "device 1" not in levels
    assert levels["import megatron.core"] == levels["collective"] == "green"


def _assert_as_on_cpu(run: Path, expected: Path, steps: int) -> None:
    assert len(losses(run)) == steps and losses(run)[-1] < losses(run)[0]
    assert losses(run) == pytest.approx(losses(expected)[:steps], **LAYOUT_LOSS)
    assert gradient_norms(run) == pytest.approx(gradient_norms(expected)[:steps], **LAYOUT_LOSS)


def _answer(said: str) -> str:
    """To the only prompt."""
    return said[said.index("> add 3 and 6") :].removeprefix("> add 3 and 6").strip()


def _tune(name: str, folder: Path, of_device: dict[str, str], *more: str, **variables: str) -> str:
    script, data, model, flags = RUNS[name]
    given = {"SMOKE": "1", "SEQ_LENGTH": "128", "TRAIN_ITERS": str(STEPS), "LR": "1e-3", "MIN_LR": "1e-4"}
    given |= {"DATA_PATH": str(folder / data), "HF_MODEL": str(folder / model)}
    tokenizer = ("--tokenizer-name-or-path", str(folder / "tokenizer"))
    return _script(script, folder, of_device, *tokenizer, *CONSTANT, *flags, *more, **(given | variables))


def _script(name: str, folder: Path, of_device: dict[str, str], *flags: str, **variables: str) -> str:
    """What a script of the examples says, unmodified."""
    given = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "LOG_DIR": str(folder / "logs")}
    command = ["bash", str(SCRIPTS / name), *flags]
    done = subprocess.run(
        command, env=of_device | given | variables, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    return done.stdout
