"""Adapters in any layout = one rank: losses and gradient norms; adapters start the same however they are split."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mindspeed_ift.checkpoint.loading import load_without_code
from tests.distributed.worlds import run
from tests.tolerances import LAYOUT_LOSS
from tests.training_runs import MODES, gradient_norms, losses, make_datasets, make_hugging_face_model

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STEPS = 4
RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
LAYOUTS = {
    (2, "tp2"): "--tensor-model-parallel-size 2",
    (2, "tp2 sp recompute"): f"--tensor-model-parallel-size 2 --sequence-parallel {RECOMPUTE}",
    (2, "pp2 recompute"): f"--pipeline-model-parallel-size 2 {RECOMPUTE}",
    (2, "pp2 vpp2"): "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1",
    (2, "pp2 1+3"): "--pipeline-model-parallel-size 2 --num-layer-list 1,3",
    (2, "dp2 do"): "--use-distributed-optimizer",
    (4, "tp2 sp pp2"): "--tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 2",
    (4, "tp2 cp2"): "--tensor-model-parallel-size 2 --context-parallel-size 2",
}
KINDS = {
    "lora": "",
    "dora": "--use-dora",
    "embedding": "--lora-modules-to-save word_embeddings --lora-ckpt-filter --ckpt-format torch",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs: one process first, then each layout in a world of its size."""
    folder = tmp_path_factory.mktemp("lora_layouts")
    data = make_datasets(folder)["packed"]
    model = make_hugging_face_model(folder / "hf", tied=True, vocab_size=400, layers=4)

    def command_line(kind: str, name: str, flags: str) -> list[str]:
        line = ["--data-path", str(data), *MODES["packed"], "--load", str(model), "--enable-hf2mg-convert"]
        line += ["--micro-batch-size", "2", "--global-batch-size", "8", "--train-iters", str(STEPS), "--lr", "1e-2"]
        line += ["--lora-target-modules", "linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", "--lora-r", "4"]
        return [*line, "--save", str(folder / kind / name), *KINDS[kind].split(), *flags.split()]

    run([command_line(kind, "one", "") for kind in KINDS], 1)
    for size in (2, 4):
        chosen = [(name, flags) for (ranks, name), flags in LAYOUTS.items() if ranks == size]
        run([command_line(kind, name, flags) for name, flags in chosen for kind in KINDS], size)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for _, name in LAYOUTS])
def test_losses_and_gradient_norms_are_those_of_one_rank(runs: Path, kind: str, name: str) -> None:
    one, other = runs / kind / "one", runs / kind / name
    expected = losses(one)
    assert len(expected) == STEPS and expected[-1] < expected[0]
    assert losses(other) == pytest.approx(expected, **LAYOUT_LOSS)
    assert gradient_norms(other) == pytest.approx(gradient_norms(one), **LAYOUT_LOSS)


@pytest.mark.parametrize("name", ["pp2 recompute", "pp2 vpp2", "pp2 1+3", "tp2 sp pp2"])
def test_a_tied_embedding_and_its_copy_are_trained_and_saved_alike(runs: Path, name: str) -> None:
    """It is a parameter of the first stage and of the last."""
    folder = runs / "embedding" / name / f"iter_{STEPS:07d}"
    found: dict[str, list[torch.Tensor]] = {}
    for path in sorted(folder.glob("mp_rank_*/model_optim_rng.pt")):
        for key, stage in load_without_code(path).items():
            if key.startswith("model"):
                kept = [value for name, value in stage.items() if ".lora_" not in name]
                found.setdefault(path.parent.name.split("_")[2], []).extend(kept)
    assert found and all(len(copies) == 2 and torch.equal(*copies) for copies in found.values())
