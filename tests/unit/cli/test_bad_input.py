"""Every command with input that cannot be used: one line that names it, exit code 2, nothing written."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.main import COMMANDS
from tests.training_runs import make_datasets, make_hugging_face_model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets, a tokenizer, models that fit and that do not, a checkpoint."""
    folder = tmp_path_factory.mktemp("input")
    make_datasets(folder)
    make_hugging_face_model(folder / "hf", tied=True, vocab_size=400)
    make_hugging_face_model(folder / "small", tied=True, vocab_size=300)
    for name in ("cut", "other", "partial"):
        shutil.copytree(folder / "hf", folder / name)
    weights = folder / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50_000])
    (folder / "other/config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    config = json.loads((folder / "partial/config.json").read_text()) | {"num_hidden_layers": 3}
    config.pop("layer_types", None)
    (folder / "partial/config.json").write_text(json.dumps(config))
    (folder / "empty.jsonl").write_text("")
    (folder / "broken.parquet").write_bytes(b"no parquet")
    return folder


TUNE = "tune --data-path {0}/single --train-iters 2 --save {0}/new"
WEIGHTS = "--enable-hf2mg-convert --load {0}"
DATA = "preprocess --tokenizer-name-or-path {0}/tokenizer --output-prefix {0}/new/data --input {0}"
ASK = "generate --prompt hello --output {0}/new/answers.jsonl --tokenizer-name-or-path {0}/tokenizer --load {0}"
TO_MEGATRON = "convert --load-model-type hf --save-model-type mg --save-dir {0}/new --load-dir {0}"
CASES = [
    # A file that is missing, unreadable, empty, or has other columns.
    (f"{DATA}/nowhere.jsonl", "nowhere.jsonl"),
    (f"{DATA}/broken.parquet", "broken.parquet"),
    (f"{DATA}/empty.jsonl", "empty.jsonl"),
    (
        f'{DATA}/records.jsonl --handler-name AlpacaStyleInstructionHandler --map-keys \'{{{{"prompt":"question"}}}}\'',
        "question",
    ),
    (TUNE.replace("single", "nowhere") + f" {WEIGHTS}/hf", "nowhere_packed_input_ids_document.idx"),
    (f"{TUNE} {WEIGHTS}/nowhere", "nowhere/config.json is missing"),
    (f"{TUNE} --load {{0}}/nowhere", "--load {0}/nowhere holds no Megatron checkpoint"),
    (f"{TUNE} --load {{0}}/hf", "add --enable-hf2mg-convert"),
    (f"{ASK}/nowhere", "neither a Hugging Face folder nor a Megatron checkpoint"),
    (f"{ASK}/hf --input {{0}}/nowhere.jsonl", "nowhere.jsonl cannot be read"),
    (f"{ASK}/hf --input {{0}}/records.jsonl", 'records.jsonl:1: not a JSON object with "prompt"'),
    (f"{TO_MEGATRON}/nowhere", "nowhere/config.json is missing"),
    ("convert --load-dir {0}/hf --save-dir {0}/new", "holds no latest_checkpointed_iteration.txt"),
    # Names and flags.
    (f"{DATA}/records.jsonl --handler-name AlpacaStyleInstructionHandlr", "AlpacaStyleInstructionHandler"),
    (f"{DATA}/records.jsonl --prompt-type qwen33", "qwen3"),
    (f"{DATA}/records.jsonl --pack", "--seq-length"),
    (f"{DATA}/records.jsonl --inptu x", "did you mean --input"),
    (f"{TUNE} --trian-iters 3", "did you mean --train-iters"),
    (f"{ASK}/hf --temprature 1", "did you mean --temperature"),
    (f"{ASK}/hf --prompt-type qwen33", "qwen3"),
    (f"{TO_MEGATRON}/hf --target-tensor-paralel-size 2", "did you mean --target-tensor-parallel-size"),
    # Sizes that do not fit: heads, vocabulary, dataset, architecture.
    (f"{TO_MEGATRON}/hf --target-tensor-parallel-size 3", "--target-tensor-parallel-size 3 does not divide 4 heads"),
    (f"{TO_MEGATRON}/hf --target-pipeline-parallel-size 3", "2 layers do not divide over"),
    (
        f"{TUNE} {WEIGHTS}/small",
        "but the model has the token ids 0 to 299; prepare the data with this model's tokenizer",
    ),
    (f"{ASK}/small", "the tokenizer gives the id"),
    (f"{TUNE} {WEIGHTS}/other", "LlamaForCausalLM is not supported"),
    (f"{ASK}/other", "LlamaForCausalLM is not supported"),
    (f"{TO_MEGATRON}/other", "LlamaForCausalLM is not supported"),
    (f"{TUNE} {WEIGHTS}/hf --preset qwen3-8b", "leave one of them out"),
    # Weights that are damaged or not all there.
    (f"{TUNE} {WEIGHTS}/cut", "cut/model.safetensors cannot be read"),
    (f"{ASK}/cut", "cut/model.safetensors cannot be read"),
    (f"{TO_MEGATRON}/cut", "cut/model.safetensors cannot be read"),
    (f"{TO_MEGATRON}/partial", "the tensor model.layers.2."),
    (f"{TUNE} {WEIGHTS}/partial", "the tensor model.layers.2."),
    # Places that cannot be written.
    (TUNE.replace("{0}/new", "{0}/records.jsonl/new") + f" {WEIGHTS}/hf", "records.jsonl is a file"),
    (DATA.replace("{0}/new", "{0}/records.jsonl/new") + "/records.jsonl", "records.jsonl"),
    (ASK.replace("{0}/new", "{0}/records.jsonl") + "/hf", "records.jsonl is a file"),
    (TO_MEGATRON.replace("{0}/new", "{0}/records.jsonl/new") + "/hf", "records.jsonl is a file"),
    ("unknown", "unknown command unknown; one of: preprocess, "),
]


@pytest.fixture(autouse=True)
def _leave_the_world():  # noqa: ANN202
    """A command that fails leaves the process, and its process groups with it; here the process stays."""
    yield
    if "megatron" in sys.modules and torch.distributed.is_initialized():
        from mindspeed_ift.mcore import parallel_state

        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("line", "message"), CASES)
def test_one_line_names_it(made: Path, line: str, message: str, capfd: pytest.CaptureFixture) -> None:
    from mindspeed_ift.cli.main import main

    before = sorted(made.rglob("*"))
    words = [word.format(made).strip("'") for word in line.split()]
    with pytest.raises(SystemExit) as stop:
        run(main, words)
    printed = [text for text in capfd.readouterr().err.splitlines() if text.strip()]
    assert stop.value.code == 2, printed
    assert len(printed) == 1 and printed[0].startswith("error: "), printed
    assert message.format(made) in printed[0]
    assert sorted(made.rglob("*")) == before


# The doctor tells of a wrong flag among all else that it finds.
@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "doctor"])
def test_debug_is_a_flag_of_every_command(command: str, capfd: pytest.CaptureFixture) -> None:
    main = importlib.import_module(f"mindspeed_ift.cli.{command.replace('-', '_')}").main
    with pytest.raises(SystemExit) as stop:
        run(main, ["--no-such-flag", "1", "--output", "x", "--debug"])
    printed = capfd.readouterr().err
    assert stop.value.code == 2 and "Traceback" in printed
    assert printed.strip().splitlines()[-1].startswith("error: unknown flag --")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_of_debug(command: str, capfd: pytest.CaptureFixture) -> None:
    main = importlib.import_module(f"mindspeed_ift.cli.{command.replace('-', '_')}").main
    with pytest.raises(SystemExit) as stop:
        run(main, ["--help"])
    assert not stop.value.code and "With --debug an error shows its" in " ".join(capfd.readouterr().out.split())
