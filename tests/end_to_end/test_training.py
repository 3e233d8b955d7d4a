"""Whole runs on one rank: against plain torch, interrupted and resumed, and refused for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.tolerances import TWENTY_STEPS_LOSS, TWENTY_STEPS_WEIGHTS
from tests.training_runs import MODES, losses, make_datasets, make_hugging_face_model, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path], Path]:
    """(folder, dataset prefixes, Hugging Face model)."""
    folder = tmp_path_factory.mktemp("training")
    return folder, make_datasets(folder), make_hugging_face_model(folder / "hf", tied=True, vocab_size=400)


def _line(made: tuple[Path, dict[str, Path], Path], mode: str, name: str, *flags: str) -> list[str]:
    folder, data, weights = made
    line = ["--data-path", str(data[mode]), *MODES[mode], "--global-batch-size", "4", "--micro-batch-size", "2"]
    line += ["--lr", "1e-3", "--weight-decay", "0.1", "--save", str(folder / name), *flags]
    return line if "--load" in flags else [*line, "--load", str(weights), "--enable-hf2mg-convert"]


def test_twenty_steps_equal_plain_torch_on_the_samples_alone(made: tuple[Path, dict[str, Path], Path]) -> None:
    """Packed training against transformers and torch's AdamW that see every sample of a row by itself."""
    from transformers import Qwen3ForCausalLM

    from mindspeed_ift.checkpoint.convert import hugging_face_tensors
    from mindspeed_ift.data.dataset import InstructionDataset
    from mindspeed_ift.data.order import SampleOrder

    folder, data, weights = made
    constant = ["--lr-decay-style", "constant", "--adam-beta2", "0.95", "--train-iters", "20", "--seed", "11"]
    run([_line(made, "packed", "twenty", *constant)], 1, folder / "jobs_twenty")

    model = Qwen3ForCausalLM.from_pretrained(weights, dtype=torch.float32, attn_implementation="sdpa")
    decayed = [p for p in model.parameters() if p.dim() > 1]
    spared = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    dataset = InstructionDataset(data["packed"])
    order, expected = SampleOrder(len(dataset), 11, True), []
    for step in range(20):
        optimizer.zero_grad()
        total, learnt = torch.zeros(()), 0
        for place in range(4):
            row = dataset[order.index(step * 4 + place)]
            for number in range(1, int(row.segments.max()) + 1):
                inside = row.segments == number
                ids = torch.tensor(row.input_ids[inside]).long()[None]
                labels = torch.tensor(row.labels[inside]).long()[None, 1:]
                logits = model(input_ids=ids).logits[:, :-1].transpose(1, 2)
                total = total + torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
                learnt += int((labels != -100).sum())
        (total / learnt).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        expected.append(float(total.detach() / learnt))
    assert losses(folder / "twenty") == pytest.approx(expected, **TWENTY_STEPS_LOSS)
    _, _, tensors = hugging_face_tensors(folder / "twenty/iter_0000020")
    theirs = dict(model.named_parameters())
    for name, tensor in tensors:
        worst = (tensor - theirs[name]).abs().max()
        assert torch.allclose(tensor, theirs[name], **TWENTY_STEPS_WEIGHTS), f"{name}: {worst}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", [[], ["--bf16"]], ids=["fp32", "bf16"])
def test_resumed_is_uninterrupted_to_the_bit(
    made: tuple[Path, dict[str, Path], Path], mode: str, precision: list[str]
) -> None:
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
        folder / f"jobs_{name}",
    )
    assert losses(folder / f"{name}_cut") == losses(folder / f"{name}_whole")
    assert (folder / f"{name}_cut" / "loss.png").stat().st_size > 1000
    whole, cut = (folder / f"{name}_{kind}" / "iter_0000008/manifest.json" for kind in ("whole", "cut"))
    checksums = [json.loads(path.read_text(encoding="utf-8"))["files"] for path in (whole, cut)]
    model_file = "mp_rank_00/model_optim_rng.pt"
    assert checksums[0][model_file] == checksums[1][model_file]


def test_another_global_batch_goes_on_where_the_data_stopped(made: tuple[Path, dict[str, Path], Path]) -> None:
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
        folder / "jobs_regrouped",
    )
    from mindspeed_ift.data.dataset import InstructionDataset

    lines = (folder / "regrouped/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    learnt = sum(record["learnt_tokens"] for record in map(json.loads, lines))
    dataset = InstructionDataset(data["fixed"])
    # 4 steps of 4 samples and 4 of 8 are the 48 samples of the dataset; of each, the first token is no label.
    assert learnt == sum(int((dataset[number].labels[1:] != -100).sum()) for number in range(len(dataset)))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train-iters", "2", "--tensor-model-parallel-size", "3"], "do not divide by TP 3"),
        (["--train-iters", "2", "--context-parallel-size", "2"], "do not divide by TP 1 x PP 1 x CP 2"),
        (["--train-iters", "2", "--expert-model-parallel-size", "2"], "not supported yet"),
        (["--train-iters", "2", "--num-layers-per-virtual-pipeline-stage", "1"], "not supported yet"),
        (["--train-iters", "2", "--lora-target-modules", "linear_qkv"], "not supported yet"),
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
def test_bad_input_is_one_line(
    made: tuple[Path, dict[str, Path], Path], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
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
