"""The example scripts: their words, their dry runs, their errors, and each for real on a tiny model."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tolerances import LAYOUT_LOSS
from tests.training_runs import losses, make_datasets, make_hugging_face_model

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples/qwen3"
SCRIPTS = sorted(path for path in FOLDER.glob("*.sh") if path.name not in ("launch.sh", "quickstart.sh"))


OWN_FLAG = {
    "data": ("--log-interval", "7"),
    "tune": ("--seed", "5"),
    "ckpt": ("--make-vocab-size-divisible-by", "3"),
    "generate": ("--seed", "5"),
    "evaluate": ("--seq-length", "512"),
}


# Size in a script's name -> layers and width of the model; tensor, pipeline and context parallel size.
MODELS = {
    "0point6b": ((28, 1024), 1, 1, 1),
    "1point7b": ((28, 2048), 1, 1, 1),
    "4b": ((36, 2560), 2, 1, 1),
    "8b": ((36, 4096), 8, 1, 1),
    "14b": ((40, 5120), 8, 1, 1),
    "32b": ((64, 5120), 8, 2, 1),
    "32b_256k": ((64, 5120), 8, 1, 4),
    "30b": ((48, 2048), 4, 2, 1),
    "30b_lora": ((48, 2048), 4, 1, 1),
    "235b": ((94, 4096), 4, 8, 1),
}
# Of those with experts: devices that share them. A pipeline stage has at least as many.
EXPERTS = {"30b": 8, "30b_lora": 8, "235b": 16, "235b_lora": 8}
# What a script trains -> length of its rows.
LENGTHS = {"full": 4096, "lora": 4096, "pack": 32768, "256k_pack": 262144}
# Of the scripts that ask a model, where it does not lie on one device: tensor and pipeline parallel size.
ASKED = {"32b": (4, 1), "30b": (4, 1), "235b": (4, 4)}
ASK = [path for path in SCRIPTS if path.name.startswith(("generate", "evaluate"))]
TUNE = [path for path in SCRIPTS if path.name.startswith("tune")]


def _kind(script: Path) -> str:
    name = script.stem.replace("_a3b", "").replace("_a22b", "")  # the active parameters
    return name.split("_", 3)[3] if name.count("_") > 2 else "full"


def _model(script: Path) -> tuple[tuple[int, int], int, int, int]:
    size = script.stem.split("_")[2]
    own = f"{size}_{_kind(script)}"
    return MODELS[f"{size}_256k" if "256k" in _kind(script) else own if own in MODELS else size]


def _experts(script: Path) -> int | None:
    size = script.stem.split("_")[2]
    return EXPERTS.get(f"{size}_{_kind(script)}", EXPERTS.get(size))


def _run(script: Path, tmp_path: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, PYTHON=sys.executable, MINDSPEED_IFT_DEVICE="cpu", OMP_NUM_THREADS="1")
    environment |= {"LOG_DIR": str(tmp_path / "logs"), **variables}
    command = ["bash", str(script), *flags]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)


def test_a_script_hands_on_that_it_is_told_to_stop(tmp_path: Path) -> None:
    """And ends as the training ends, its last words in the log too."""
    program = tmp_path / "python"
    program.write_text(
        '#!/bin/bash\n[ "$2" = mindspeed_ift.cli.main ] && exit 0  # the doctor\n'
        "trap 'echo saved; exit 7' TERM\necho started\nwhile :; do sleep 0.05; done\n"
    )
    program.chmod(0o755)
    script = f"set -euo pipefail\nsource {FOLDER / 'launch.sh'}\nDEVICES=1 run_training tune\n"
    environment = dict(os.environ, PYTHON=str(program), LOG_DIR=str(tmp_path / "logs"))
    process = subprocess.Popen(["bash", "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "saved\n" and process.returncode == 7
    assert (tmp_path / "logs/tune.log").read_text(encoding="utf-8") == "started\nsaved\n"


@pytest.mark.parametrize(("code", "told"), [(0, False), (1, True), (2, False), (137, False)])
def test_of_a_training_that_fails_the_doctor_speaks(tmp_path: Path, code: int, told: bool) -> None:
    """But not of one that was asked for what cannot be, or that was killed."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/bash\necho "${{WORLD_SIZE:-}} ${{*:2}}"\nexit {code}\n')
    program.chmod(0o755)
    script = f"set -euo pipefail\nsource {FOLDER / 'launch.sh'}\nDEVICES=2 run_training tune --seq-length 8\n"
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    environment |= {"PYTHON": str(program), "LOG_DIR": str(tmp_path / "logs")}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    kept, words = tmp_path / "logs/tune.doctor.log", "2 mindspeed_ift.cli.main doctor --seq-length 8\n"
    line = f"the doctor looks for the cause; a report begins with what it says, kept in {kept}\n"
    assert (done.returncode, done.stderr) == (code, line + words if told else "")
    assert kept.read_text(encoding="utf-8") == words if told else not kept.exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_head_says_what_it_does(script: Path) -> None:
    """Strict mode, a head with what it needs and prints, and no more than 40 lines."""
    text = script.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text and "# Needs: " in text and "Prints: " in text and '"$@"' in text
    assert len(text.splitlines()) <= 40


def _check_layout(script: Path, command: str, configuration: list[str]) -> None:
    (layers, width), tensor, pipeline, context = _model(script)
    experts = _experts(script)
    devices = max(tensor * context, experts or 1) * pipeline
    assert f"-m mindspeed_ift.cli.torchrun --nproc_per_node {min(devices, 8)} " in command
    assert (f"--nnodes {devices // 8} " if devices > 8 else "--standalone ") in command
    assert any(f"num_layers {layers}, hidden_size {width}" in line for line in configuration)
    layout = f"layout: {devices} devices = tensor {tensor} x pipeline {pipeline} x context {context} x data "
    (told,) = (line for line in configuration if line.startswith(layout))
    assert told.startswith(f"{layout}{devices // tensor // pipeline // context}")
    assert (f", experts {experts} x tensor 1;" in told) if experts else "experts" not in told
    assert f"  --seq-length = {LENGTHS[_kind(script)]}   (flag)" in configuration


def _check_sizes(script: Path, command: str, configuration: list[str]) -> None:
    tensor, pipeline = ASKED.get(script.stem.split("_")[2], (1, 1))
    devices = tensor * pipeline
    ranks = f"-m mindspeed_ift.cli.torchrun --nproc_per_node {min(devices, 8)} "
    ranks += f"--nnodes {devices // 8} " if devices > 8 else "--standalone "
    assert (ranks in command) == (devices > 1) == ("torchrun" in command)
    for axis, size in (("tensor", tensor), ("pipeline", pipeline)):
        assert f"  --{axis}-model-parallel-size = {size}   (flag)" in configuration


# Instead of Python: no accelerators, and what was to be run, with the world it was told of, into a file.
RECORDER = """#!/bin/bash
[ "$1" = -c ] && exec echo 0
printf '%s\\n' "${WORLD_SIZE:-}" "$@" >"$RECORD"
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_dry_run_prints_the_command_and_the_configuration(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DRY_RUN=1 shows what would run, the user's own flags last, and what they come to; it writes nothing."""
    flag, value = OWN_FLAG[script.name.split("_")[0]]
    (tmp_path / "here").mkdir()
    python, record = tmp_path / "python", tmp_path / "record"
    python.write_text(RECORDER)
    python.chmod(0o755)
    done = _run(script, tmp_path / "here", flag, value, DRY_RUN="1", PYTHON=str(python), RECORD=str(record))
    assert done.returncode == 0, done.stderr
    (command,) = done.stdout.strip().splitlines()
    assert command.strip().endswith(f"{flag} {value}") and "/tools/" in command
    world, tool, *words = record.read_text(encoding="utf-8").splitlines()
    assert words[-3:] == [flag, value, "--dry-run"]
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.chdir(tmp_path / "here")
    assert runpy.run_path(tool)["main"](words) == 0
    title, *configuration = capsys.readouterr().out.strip().splitlines()
    assert title.startswith("configuration") and f"  {flag} = {value}   (flag)" in configuration
    if script in TUNE:
        _check_layout(script, command, configuration)
    if script in ASK:
        _check_sizes(script, command, configuration)
    assert not list((tmp_path / "here").iterdir())


def test_dry_run_of_python_itself(tmp_path: Path) -> None:
    """As a user sees it: the command, then the configuration."""
    done = _run(FOLDER / "tune_qwen3_8b.sh", tmp_path, "--seed", "5", DRY_RUN="1")
    assert done.returncode == 0, done.stderr
    command, title, *configuration = done.stdout.strip().splitlines()
    assert command.strip().endswith("--seed 5") and title.startswith("configuration")
    assert any(line.startswith("layout: 8 devices = ") for line in configuration)
    assert not list(tmp_path.iterdir())


def test_every_size_has_every_kind() -> None:
    """And a trial of each is that of the 8B, which is run for real below."""
    kinds = {(script.stem.split("_")[2], _kind(script)) for script in TUNE}
    sizes = [name for name in MODELS if "_" not in name]
    assert kinds >= {(size, kind) for size in sizes for kind in ("full", "lora", "pack")} | {("32b", "256k_pack")}
    asked = {tuple(script.stem.split("_")[:3:2]) for script in ASK}
    assert asked == {(kind, size) for size in sizes for kind in ("generate", "evaluate")}


@pytest.mark.parametrize(
    "script", [path for path in [*TUNE, *ASK] if "256k" not in path.name], ids=lambda path: path.name
)
def test_a_trial_of_any_size_is_that_of_the_8b(script: Path, tmp_path: Path) -> None:
    """SMOKE=1 gives the same command for every size, and those of the 8B (30B-A3B) are run for real below."""
    kind = _kind(script)
    size = "30b_a3b" if _experts(script) else "8b"
    same = FOLDER / (f"tune_qwen3_{size}.sh" if kind == "full" else f"tune_qwen3_{size}_{kind}.sh")
    if script in ASK:
        same = FOLDER / f"{script.name.split('_')[0]}_qwen3_8b.sh"
    python = tmp_path / "python"
    python.write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    variables = {"SMOKE": "1", "DRY_RUN": "1", "PYTHON": str(python), "DEVICES": "1", "SAVE": str(tmp_path / "run")}
    variables |= {"LOAD": str(tmp_path), "RESULT": str(tmp_path / "result")}
    learning_rates = {"LR": "1e-5", "MIN_LR": "1e-6", "GBS": "2"}
    asked, expected = (_run(path, tmp_path, **variables, **learning_rates).stdout for path in (script, same))
    assert asked == expected and ("--num-layers\n2\n" in asked) == (script in TUNE)


@pytest.mark.parametrize(
    "script",
    [path for path in SCRIPTS if path not in [*TUNE, *ASK] or path.stem.endswith("qwen3_8b")],
    ids=lambda path: path.name,
)
def test_a_dry_run_refuses_an_unknown_flag(script: Path, tmp_path: Path) -> None:
    wrong = _run(script, tmp_path, "--no-such-flag", DRY_RUN="1")
    assert wrong.returncode == 2 and "error: unknown flag --no-such-flag" in wrong.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "script", [path for path in SCRIPTS if path not in [*TUNE, *ASK] or "8b" in path.name], ids=lambda path: path.name
)
def test_a_missing_path_is_one_sentence(script: Path, tmp_path: Path) -> None:
    """Exit code 2 before anything is written."""
    nowhere = str(tmp_path / "nowhere")
    names = ("INPUT", "TOKENIZER", "DATA_PATH", "LOAD", "HF_MODEL")
    done = _run(script, tmp_path, **dict.fromkeys(names, nowhere))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_two_machines_must_know_each_other_and_a_trial_needs_one(tmp_path: Path) -> None:
    script = FOLDER / "tune_qwen3_32b.sh"
    (tmp_path / "data_packed_input_ids_document.idx").touch()
    variables = {"HF_MODEL": str(tmp_path), "DATA_PATH": str(tmp_path / "data")}
    done = _run(script, tmp_path, **variables, MASTER_ADDR="first")
    assert done.returncode == 2 and done.stderr.startswith("error: NNODES=2: set MASTER_ADDR"), done.stderr
    command = _run(script, tmp_path, DRY_RUN="1", **variables, MASTER_ADDR="first", NODE_RANK="1").stdout
    assert " --nnodes 2 --node_rank 1 --master_addr first " in command
    trial = _run(script, tmp_path, DRY_RUN="1", SMOKE="1", MAX_RESTARTS="3").stdout
    assert " --nproc_per_node 1 --standalone --max_restarts 3 " in trial and "layout: 1 devices" in trial


@pytest.mark.parametrize(
    ("number", "group"), [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)], ids=str
)
def test_a_signal_reaches_the_command_and_its_last_words_are_kept(tmp_path: Path, number: int, group: bool) -> None:
    """Sent to the script alone, or, as a terminal does, to all it started."""
    answer = "import signal, sys, time\ndef stop(*_):\n    time.sleep(0.3)\n    print('saved')\n    sys.exit(0)\n"
    answer += f"signal.signal({int(number)}, stop)\nprint('ready', flush=True)\ntime.sleep(60)\n"
    (tmp_path / "run.sh").write_text(
        f'set -euo pipefail\nsource "{FOLDER}/launch.sh"\nlogged run "$PYTHON" -c "$CODE"\n'
    )
    environment = dict(os.environ, PYTHON=sys.executable, LOG_DIR=str(tmp_path / "a folder"), CODE=answer)
    process = subprocess.Popen(
        ["bash", str(tmp_path / "run.sh")], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    (os.killpg if group else os.kill)(process.pid, number)
    assert process.communicate()[0] == "saved\n" and process.returncode == 0
    assert (tmp_path / "a folder/run.log").read_text() == "ready\nsaved\n"


def test_setup_takes_no_folder_from_the_environment(tmp_path: Path) -> None:
    """ROOT is a common name of variables."""
    command = ["bash", "-c", 'set -eu; source "$1"; echo "$ROOT"', "bash", str(ROOT / "examples/setup.sh")]
    environment = dict(os.environ, PYTHON=sys.executable, ROOT=str(tmp_path))
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == str(ROOT), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "_pack"])
def test_each_script_for_real(tmp_path: Path, kind: str) -> None:
    """Convert data, tune, convert the checkpoint, answer: the scripts as they are, on a tiny model."""
    make_datasets(tmp_path)
    variables = {
        "SMOKE": "1",
        "INPUT": str(tmp_path / "records.jsonl"),
        "TOKENIZER": str(tmp_path / "tokenizer"),
        "OUTPUT_PREFIX": str(tmp_path / "data/made"),
        "DATA_PATH": str(tmp_path / "data/made"),
        "SEQ_LENGTH": "128",
        "TRAIN_ITERS": "3",
        "SAVE": str(tmp_path / "run"),
        "LOAD": str(tmp_path / "run"),
        "HF_OUTPUT": str(tmp_path / "hf"),
        "MAX_NEW_TOKENS": "4",
    }
    tokenizer = ["--tokenizer-name-or-path", variables["TOKENIZER"]]
    for script, flags in (
        (f"data_convert_qwen3_instruction{kind}.sh", []),
        (f"tune_qwen3_8b{kind}.sh", tokenizer),
        ("ckpt_convert_qwen3_mcore2hf.sh", []),
        ("generate_qwen3_8b.sh", ["--prompt", "add 3 and 6"]),
    ):
        done = _run(FOLDER / script, tmp_path, *flags, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run/loss.png").is_file() and (tmp_path / "hf/model.safetensors").is_file()
    assert "> add 3 and 6" in done.stdout
    again = _run(FOLDER / f"tune_qwen3_8b{kind}.sh", tmp_path, **(variables | {"TRAIN_ITERS": "4"}))
    assert again.returncode == 0 and "resuming after step 3" in again.stdout, again.stdout + again.stderr
    if kind:  # the long rows, each shared by two devices
        long = variables | {"SAVE": str(tmp_path / "long")}
        done = _run(FOLDER / "tune_qwen3_32b_256k_pack.sh", tmp_path, *tokenizer, **long)
        assert done.returncode == 0 and "context 2" in done.stdout, done.stdout + done.stderr
        assert losses(tmp_path / "long") == pytest.approx(losses(tmp_path / "run")[:3], **LAYOUT_LOSS)
    broken = _run(FOLDER / f"tune_qwen3_8b{kind}.sh", tmp_path, "--trian-iters", "3", **variables)
    assert broken.returncode == 2 and "did you mean --train-iters" in broken.stdout
    assert broken.stdout.count("error: ") == 1 and "Traceback" not in broken.stdout


@pytest.mark.slow
def test_adapters_from_tuning_to_a_folder(tmp_path: Path) -> None:
    """The LoRA script on the weights of a folder, run again where it stopped; merged, they are a folder that loads."""
    data = make_datasets(tmp_path)
    model = make_hugging_face_model(tmp_path / "base", tied=True, vocab_size=400)
    variables = {"SMOKE": "1", "DATA_PATH": str(data["dynamic"]), "SEQ_LENGTH": "128", "HF_MODEL": str(model)}
    variables |= {"SAVE": str(tmp_path / "run"), "LOAD": str(tmp_path / "run"), "HF_OUTPUT": str(tmp_path / "hf")}
    tokenizer = ["--tokenizer-name-or-path", str(tmp_path / "tokenizer")]
    for iterations, expected in (("2", "adapters: fresh, on linear_qkv"), ("3", "resuming after step 2")):
        done = _run(FOLDER / "tune_qwen3_8b_lora.sh", tmp_path, *tokenizer, **variables, TRAIN_ITERS=iterations)
        assert done.returncode == 0 and expected in done.stdout, done.stdout + done.stderr
    done = _run(FOLDER / "ckpt_convert_qwen3_mcore2hf_lora.sh", tmp_path, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    generate = {"LOAD": variables["HF_OUTPUT"], "TOKENIZER": str(tmp_path / "tokenizer"), "MAX_NEW_TOKENS": "4"}
    done = _run(FOLDER / "generate_qwen3_8b.sh", tmp_path, "--prompt", "add 3 and 6", **generate)
    assert done.returncode == 0 and "> add 3 and 6" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_experts_from_tuning_to_answers(tmp_path: Path) -> None:
    """Whole weights on two devices that share the experts, exported; adapters of those weights, merged; both measured."""
    data = make_datasets(tmp_path)
    variables = {"SMOKE": "1", "SEQ_LENGTH": "128", "TRAIN_ITERS": "2", "EP": "2", "DEVICES": "2"}
    tokenizer = ["--tokenizer-name-or-path", str(tmp_path / "tokenizer")]
    whole = variables | {
        "SAVE": str(tmp_path / "run"),
        "LOAD": str(tmp_path / "run"),
        "HF_OUTPUT": str(tmp_path / "hf"),
    }
    whole |= {"DATA_PATH": str(data["packed"])}
    adapted = variables | {
        "SAVE": str(tmp_path / "lora"),
        "LOAD": str(tmp_path / "lora"),
        "HF_MODEL": str(tmp_path / "hf"),
    }
    adapted |= {"DATA_PATH": str(data["dynamic"]), "HF_OUTPUT": str(tmp_path / "merged")}
    for script, flags, own in (
        ("tune_qwen3_30b_a3b_pack.sh", tokenizer, whole),
        ("ckpt_convert_qwen3_mcore2hf.sh", [], whole),
        ("tune_qwen3_30b_a3b_lora.sh", tokenizer, adapted),
        ("ckpt_convert_qwen3_mcore2hf_lora.sh", [], adapted),
    ):
        done = _run(FOLDER / script, tmp_path, *flags, **own)
        assert done.returncode == 0, done.stdout + done.stderr
    adapted |= {"LOAD": adapted["HF_OUTPUT"], "BASELINE": whole["HF_OUTPUT"], "RESULT": str(tmp_path / "result")}
    adapted |= {"INPUT": str(tmp_path / "records.jsonl"), "METRICS": "exact_match", "MAX_NEW_TOKENS": "4", "TP": "2"}
    done = _run(FOLDER / "evaluate_qwen3_30b_a3b.sh", tmp_path, "--max-samples", "3", **adapted)
    assert done.returncode == 0 and "of 3 records is lower after" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "result.json").is_file() and (tmp_path / "result.html").is_file()
