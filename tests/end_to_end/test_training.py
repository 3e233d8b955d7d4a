"""Whole runs on one rank: against plain torch, interrupted and resumed, and refused for bad input."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mindspeed_ift.cli.preprocess import main as preprocess
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.order import SampleOrder, split_ranges
from mindspeed_ift.data.sample import Sample
from tests.distributed.worlds import run
from tests.tolerances import BF16_STEPS, TWENTY_STEPS_LOSS, TWENTY_STEPS_WEIGHTS
from tests.training_runs import (
    MODES,
    ROOT,
    gradient_norms,
    losses,
    make_datasets,
    make_hugging_face_model,
    of_steps,
    records,
)

pytestmark = pytest.mark.slow


Made = tuple[Path, dict[str, Path], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """(folder, dataset prefixes, Hugging Face model)."""
    folder = tmp_path_factory.mktemp("training")
    make_hugging_face_model(folder / "untied", tied=False, vocab_size=400)
    return folder, make_datasets(folder), make_hugging_face_model(folder / "hf", tied=True, vocab_size=400)


def _line(made: Made, mode: str, name: str, *flags: str) -> list[str]:
    folder, data, weights = made
    line = ["--data-path", str(data[mode]), *MODES[mode], "--global-batch-size", "4", "--micro-batch-size", "2"]
    line += ["--lr", "1e-3", "--weight-decay", "0.1", "--save", str(folder / name), *flags]
    return line if "--load" in flags else [*line, "--load", str(weights), "--enable-hf2mg-convert"]


def _loss_of_samples(model: torch.nn.Module, rows: list[Sample]) -> tuple[torch.Tensor, int]:
    """(loss sum, learnt tokens) of Hugging Face's model, which sees every sample of every row by itself."""
    total, learnt = torch.zeros(()), 0
    for row in rows:
        segments = np.ones(len(row), np.int32) if row.segments is None else row.segments
        for number in range(1, int(segments.max()) + 1):
            inside = segments == number
            ids = torch.tensor(row.input_ids[inside]).long()[None]
            labels = torch.tensor(row.labels[inside]).long()[None, 1:]
            logits = model(input_ids=ids).logits[:, :-1].transpose(1, 2)
            total = total + torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
            learnt += int((labels != -100).sum())
    return total, learnt


def _cosine(step: int) -> float:
    return 1e-3 * step / 4 if step < 4 else 1e-4 + 9e-4 * (1 + math.cos(math.pi * (step - 4) / 16)) / 2


FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
CHUNK = "--recompute-granularity selective --loss-compute-mode chunk --loss-chunk-size 8"
# Folder of the weights, flags, learning rate of a step, largest gradient norm.
TWENTY_STEPS = {
    "constant": ("hf", "--lr-decay-style constant", lambda step: 1e-3, 1.0),
    "cosine, recompute, hard clip": (
        "untied",
        f"--lr-decay-style cosine --min-lr 1e-4 --lr-warmup-iters 4 --clip-grad 0.05 {FULL}",
        _cosine,
        0.05,
    ),
    "linear, no clip, chunks, deterministic": (
        "hf",
        f"--lr-decay-style linear --clip-grad 0 --deterministic-mode {CHUNK}",
        lambda step: 1e-3 * (20 - step) / 20,
        1e9,
    ),
    "bf16": ("untied", f"--lr-decay-style constant --bf16 {FULL}", lambda step: 1e-3, 1.0),
}


def test_half_the_weight_is_half_of_loss_and_gradient(made: Made, tmp_path: Path) -> None:
    """Exactly: one half is a power of two."""
    folder, _, weights = made
    lines = []
    for share in (1, 0.5):
        records = [
            {
                "messages": [
                    {"role": "user", "content": f"What is {number} and {number}?"},
                    {"role": "assistant", "content": f"It is {2 * number}.", "weight": share},
                ]
            }
            for number in range(8)
        ]
        file = tmp_path / f"{share}.jsonl"
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        prefix, save = str(tmp_path / f"{share}"), str(tmp_path / f"run{share}")
        paths = ["--input", str(file), "--tokenizer-name-or-path", str(folder / "tokenizer"), "--output-prefix", prefix]
        preprocess([*paths, "--prompt-type", "qwen3", "--pack", "--neat-pack", "--seq-length", "128"])
        line = [
            "--data-path",
            prefix,
            *MODES["packed"],
            "--global-batch-size",
            "2",
            "--train-iters",
            "1",
            "--lr",
            "1e-3",
        ]
        lines.append([*line, "--load", str(weights), "--enable-hf2mg-convert", "--save", save])
    run(lines, 1)
    whole, half = tmp_path / "run1", tmp_path / "run0.5"
    assert losses(half) == [loss / 2 for loss in losses(whole)] and losses(half)[0] > 0
    assert gradient_norms(half) == [norm / 2 for norm in gradient_norms(whole)]


@pytest.mark.parametrize("name", TWENTY_STEPS)
def test_twenty_steps_equal_plain_torch_on_the_samples_alone(made: Made, name: str) -> None:
    """Packed training against transformers and torch's AdamW in fp32, one sample at a time."""
    from transformers import Qwen3ForCausalLM

    from mindspeed_ift.checkpoint.source import Checkpoint

    folder, data, _ = made
    source, flags, rate, clip = TWENTY_STEPS[name]
    weights = ["--load", str(folder / source), "--enable-hf2mg-convert"]
    line = _line(
        made, "packed", name, *flags.split(), "--adam-beta2", "0.95", "--train-iters", "20", "--seed", "11", *weights
    )
    run([line], 1)

    model = Qwen3ForCausalLM.from_pretrained(folder / source, attn_implementation="sdpa").float()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    spared = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    dataset = InstructionDataset(data["packed"])
    order, expected = SampleOrder(len(dataset), 11, True), []
    for step in range(20):
        optimizer.zero_grad()
        rows = [dataset[order.index(step * 4 + place)] for place in range(4)]
        total, learnt = _loss_of_samples(model, rows)
        (total / learnt).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        expected.append(float(total.detach() / learnt))
    tolerance = BF16_STEPS if "--bf16" in flags else TWENTY_STEPS_LOSS
    assert losses(folder / name) == pytest.approx(expected, **tolerance)
    if "--bf16" in flags:
        return
    source = Checkpoint(folder / name / "iter_0000020")
    for key, weight in model.named_parameters():
        tensor = source.tensor(key, tuple(weight.shape))
        assert torch.allclose(tensor, weight, **TWENTY_STEPS_WEIGHTS), f"{key}: {(tensor - weight).abs().max()}"


@pytest.mark.parametrize("mode", ["fixed", "packed"])
def test_evaluation_is_the_loss_over_the_validation_samples(made: Made, mode: str) -> None:
    """Each once, with weights that do not move; or as many as --eval-iters asks for."""
    from transformers import Qwen3ForCausalLM

    folder, data, weights = made
    dataset = InstructionDataset(data[mode])
    split = "69,31"  # an odd number of samples, that no batch divides
    _, valid, _ = split_ranges(len(dataset), split)
    assert len(valid) % 2 == 1
    still = ["--train-iters", "3", "--lr", "1e-30", "--split", split, "--eval-interval", "2", "--eval-iters"]
    names = {count: f"evaluated {mode} {count}" for count in (100, 1, 0)}
    run([_line(made, mode, name, *still, str(count)) for count, name in names.items()], 1)
    model = Qwen3ForCausalLM.from_pretrained(weights, attn_implementation="sdpa").float()
    for count, name in names.items():
        found = [record for record in records(folder / name) if "validation_loss" in record]
        assert [record["iteration"] for record in found] == ([2, 3] if count else [])
        with torch.no_grad():
            total, learnt = _loss_of_samples(model, [dataset[number] for number in valid][: count * 4])
        assert [record["validation_loss"] for record in found] == pytest.approx(
            [float(total) / max(learnt, 1)] * len(found), **TWENTY_STEPS_LOSS
        )


def test_killed_in_the_middle_and_started_again_by_the_same_line(made: Made) -> None:
    """SIGKILL at any moment, in a save too: the losses of a run that nothing has killed, to the bit."""
    folder = made[0]
    common = ["--train-iters", "24", "--save-interval", "2", "--load"]
    model = "--num-layers 2 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4 --num-query-groups 2".split()
    whole, killed = (
        [*_line(made, "packed", name, *common, str(folder / name)), *model] for name in ("never", "killed")
    )
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", MINDSPEED_IFT_DEVICE="cpu")
    process = subprocess.Popen([sys.executable, str(ROOT / "tools/posttrain_gpt.py"), *killed], env=environment)
    metrics, until = folder / "killed/metrics.jsonl", time.monotonic() + 300
    while time.monotonic() < until and (not metrics.is_file() or len(metrics.read_text().splitlines()) < 7):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(metrics.read_text().splitlines()) < 24
    run([whole, killed], 1)
    assert losses(folder / "killed") == losses(folder / "never") and len(losses(folder / "never")) == 24
    assert not list((folder / "killed").glob(".*"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", [[], ["--bf16"]], ids=["fp32", "bf16"])
def test_resumed_is_uninterrupted_to_the_bit(made: Made, mode: str, precision: list[str]) -> None:
    """A run that stops between two saves and is started again has the losses of one that never stopped."""
    folder = made[0]
    name = f"{mode}_{len(precision)}"
    common = ["--train-iters", "8", "--save-interval", "3", "--lr-warmup-iters", "2", *precision]
    own = str(folder / f"{name}_cut")
    run(
        [
            _line(made, mode, f"{name}_whole", *common),
            _line(made, mode, f"{name}_cut", *common, "--exit-interval", "5"),
            _line(made, mode, f"{name}_cut", *common, "--load", own),
        ],
        1,
    )
    assert losses(folder / f"{name}_cut") == losses(folder / f"{name}_whole")
    assert (folder / f"{name}_cut" / "loss.png").stat().st_size > 1000
    whole, cut = (folder / f"{name}_{kind}" / "iter_0000008/manifest.json" for kind in ("whole", "cut"))
    checksums = [json.loads(path.read_text(encoding="utf-8"))["files"] for path in (whole, cut)]
    assert checksums[0]["__0_0.distcp"] == checksums[1]["__0_0.distcp"]  # the weights


def test_another_global_batch_goes_on_where_the_data_stopped(made: Made) -> None:
    """A run resumed with twice the batch sees every sample of the epoch once."""
    folder, data, _ = made
    own = str(folder / "regrouped")
    fresh = ["--split", "100", "--lr-decay-style", "constant", "--train-iters"]
    run(
        [
            _line(made, "fixed", "regrouped", *fresh, "4"),
            _line(made, "fixed", "regrouped", *fresh, "8", "--load", own, "--global-batch-size", "8"),
        ],
        1,
    )
    from mindspeed_ift.data.dataset import InstructionDataset

    learnt = sum(of_steps(folder / "regrouped", "learnt_tokens"))
    dataset = InstructionDataset(data["fixed"])
    # 4 steps of 4 samples and 4 of 8 are the 48 samples of the dataset; of each, the first token is no label.
    assert learnt == sum(int((dataset[number].labels[1:] != -100).sum()) for number in range(len(dataset)))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train-iters", "2", "--tensor-model-parallel-size", "3"], "do not divide by TP 3"),
        (["--train-iters", "2", "--context-parallel-size", "2"], "do not divide by TP 1 x PP 1 x CP 2"),
        (["--train-iters", "2", "--expert-model-parallel-size", "2"], "do not divide by EP 2"),
        (["--train-iters", "2", "--num-layers-per-virtual-pipeline-stage", "1"], "needs --pipeline-model-parallel"),
        (["--train-iters", "2", "--lora-r", "4"], "needs --lora-target-modules"),
        ([], "--train-iters is missing"),
        (["--train-iters", "2", "--global-batch-size", "3"], "must be a multiple"),
        (["--train-iters", "2", "--preset", "qwen3-8b"], "leave one of them out"),
        (["--train-iters", "2", "--preset", "qwen3-9b"], "one of: "),
        (["--train-iters", "2", "--trian-iters", "2"], "did you mean --train-iters"),
        (["--train-iters", "two"], "--train-iters"),
        (["--train-iters", "2", "--split", "0,1,0"], "no training sample"),
        (["--train-iters", "2", "--data-path", "nowhere/data"], "nowhere/data"),
        (["--train-iters", "2", "--seq-length", "8", "--no-cut-token"], "--seq-length 8"),
    ],
)
def test_bad_input_is_one_line(made: Made, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, the flag named, nothing written."""
    from mindspeed_ift.cli.command import run as command
    from mindspeed_ift.cli.tune import main

    line = _line(made, "fixed", "refused", *flags)
    with pytest.raises(SystemExit) as stop:
        command(main, line)
    assert stop.value.code == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1 and printed[0].startswith("error: ") and message in printed[0], printed
    assert not (made[0] / "refused").exists()
