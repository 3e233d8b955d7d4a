"""Stopped and started again = never stopped, to the bit, on several ranks; and evaluation that no layout changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.worlds import run
from tests.tolerances import BF16_LAYOUT, LAYOUT_LOSS
from tests.training_runs import MODES, losses, make_datasets, make_hugging_face_model, records

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

TENSOR, PIPELINE, CONTEXT = (f"--{name}-parallel-size 2" for name in ("tensor-model", "pipeline-model", "context"))
DISTRIBUTED = "--use-distributed-optimizer"
BALANCED = "--balance-packs"
KINDS = ("whole", "cut")
HALF = "--fp16 --initial-loss-scale 8192 --hysteresis 1 --loss-scale-window 2"
TORCH = "--ckpt-format torch"
WEIGHTS = ("model_optim_rng.pt", "_0.distcp")
# Name -> ranks, sequence mode, flags, in which {mode} is the dataset of that mode; modes, fp32 and bf16, and formats take
# turns.
CASES = {
    "tp2 sp": (2, "packed", f"{TENSOR} --sequence-parallel --bf16"),
    "pp2": (2, "dynamic", f"{PIPELINE} {TORCH}"),
    "dp2 do overlap": (2, "fixed", f"{DISTRIBUTED} --overlap-grad-reduce --overlap-param-gather --bf16 {TORCH}"),
    "cp2 do": (2, "packed", f"{CONTEXT} {DISTRIBUTED}"),
    "tp2 sp fp16": (2, "packed", f"{TENSOR} --sequence-parallel {HALF}"),
    "dp2 several": (2, "packed", "--data-path 0.7 {packed} 0.3 {dynamic}"),
    "tp2 sp dp2 do": (4, "dynamic", f"{TENSOR} --sequence-parallel {DISTRIBUTED} {TORCH}"),
    "pp2 dp2 do": (4, "packed", f"{PIPELINE} {DISTRIBUTED} --bf16"),
}

# Each replica draws as many numbers as its samples have positions: their random states part.
DROPPING = {
    f"dropout {ckpt_format}": (
        2,
        "dynamic",
        f"--lora-target-modules linear_qkv linear_fc2 --lora-dropout 0.3 --ckpt-format {ckpt_format}",
    )
    for ckpt_format in ("torch", "torch_dist")
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each case: a run without a stop, one that stops between two saves and goes on, and one rank."""
    folder = tmp_path_factory.mktemp("resume")
    data = make_datasets(folder)
    weights = make_hugging_face_model(folder / "hf", tied=True, vocab_size=400)

    def line(mode: str, name: str, flags: str, *more: str) -> list[str]:
        start = more if "--load" in more else ["--load", str(weights), "--enable-hf2mg-convert", *more]
        words = [
            "--data-path",
            str(data[mode]),
            *MODES[mode],
            "--split",
            "75,25",
            "--lr",
            "1e-3",
            "--lr-warmup-iters",
            "2",
        ]
        words += ["--micro-batch-size", "1", "--global-batch-size", "4", "--train-iters", "5", "--eval-interval", "2"]
        return [*words, "--save-interval", "2", "--save", str(folder / name), *flags.format(**data).split(), *start]

    jobs: list[list[str]] = []
    for name, (ranks, mode, flags) in (CASES | DROPPING).items():
        jobs.append([str(ranks), *line(mode, f"{name} whole", flags)])
        jobs.append([str(ranks), *line(mode, f"{name} cut", flags, "--exit-interval", "3")])
        jobs.append([str(ranks), *line(mode, f"{name} cut", flags, "--load", str(folder / f"{name} cut"))])
        if name in DROPPING:
            continue
        alone = "--bf16" if "--bf16" in flags else HALF if HALF in flags else flags if "--data-path" in flags else ""
        jobs.append(["1", *line(mode, f"{name} one", alone)])
    jobs.append(["2", *line("packed", "balanced whole", BALANCED)])
    jobs.append(["2", *line("packed", "balanced cut", BALANCED, "--exit-interval", "3")])
    jobs.append(["1", *line("packed", "balanced cut", BALANCED, "--load", str(folder / "balanced cut"))])
    run(jobs, 4)
    return folder


@pytest.mark.parametrize("name", [*CASES, *DROPPING])
def test_resumed_is_uninterrupted_to_the_bit(runs: Path, name: str) -> None:
    """Losses, gradient norms, learning rates, validation losses, and the weights at the end."""
    whole, cut = (runs / f"{name} {kind}" for kind in KINDS)
    assert records(cut) == records(whole)
    assert len(losses(whole)) == 5
    manifests = [json.loads((folder / "iter_0000005/manifest.json").read_text("utf-8")) for folder in (whole, cut)]
    files = [{k: v for k, v in one["files"].items() if k.endswith(WEIGHTS)} for one in manifests]
    assert files[0] == files[1] and files[0]


@pytest.mark.parametrize("name", CASES)
def test_training_and_evaluation_are_those_of_one_rank(runs: Path, name: str) -> None:
    """In bf16 too, where rounding is coarser; the evaluation takes each validation sample once in every layout."""
    tolerance = BF16_LAYOUT if "--bf16" in CASES[name][2] or HALF in CASES[name][2] else LAYOUT_LOSS
    one, other = (records(runs / f"{name} {kind}") for kind in ("one", "whole"))
    assert [record["iteration"] for record in other] == [1, 2, 2, 3, 4, 4, 5, 5]
    for mine, theirs in zip(other, one, strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine.keys() & {"loss", "validation_loss", "gradient_norm"}:
            assert mine[key] == pytest.approx(theirs[key], **tolerance), key
        for key in ("learnt_tokens", "real_tokens", "squared_lengths"):
            assert mine.get(key) == theirs.get(key), key


def test_balanced_rows_go_on_on_another_number_of_ranks(runs: Path) -> None:
    """Begun on two ranks, ended on one: steps of the same rows until the epoch of 18 rows ends."""
    whole, cut = ([one for one in records(runs / f"balanced {kind}") if one["iteration"] <= 4] for kind in KINDS)
    assert [record["iteration"] for record in cut] == [record["iteration"] for record in whole]
    for mine, theirs in zip(cut, whole, strict=True):
        assert mine.get("learnt_tokens") == theirs.get("learnt_tokens")
        assert mine.get("squared_lengths") == theirs.get("squared_lengths")
        for key in mine.keys() & {"loss", "validation_loss", "gradient_norm"}:
            assert mine[key] == pytest.approx(theirs[key], **LAYOUT_LOSS), key
    assert len({record["squared_lengths"] for record in whole if "squared_lengths" in record}) > 3, "other rows a step"
    manifest = json.loads((runs / "balanced cut/iter_0000004/manifest.json").read_text("utf-8"))
    assert manifest["layout"]["data"] == 1
    assert manifest["dealing"] == {"pass_rows": 2, "step_rows": 4, "start": 0}, "of the run that began the epoch"
