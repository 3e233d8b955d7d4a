"""Interleaved and unequal pipelines = one rank: losses, gradient norms, evaluation, and the exported weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mindspeed_ift.checkpoint.convert import convert
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.mcore import unable
from tests.distributed.worlds import run
from tests.tolerances import LAYOUT_LOSS, TWENTY_STEPS_WEIGHTS
from tests.training_runs import MODES, gradient_norms, losses, make_datasets, make_hugging_face_model, of_steps

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STEPS, LAYERS = 4, 4
INTERLEAVED = "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1"
RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
LAYOUTS = {
    (2, "pp2 vpp2"): INTERLEAVED,
    (4, "tp2 sp pp2 vpp2 recompute"): f"{INTERLEAVED} --tensor-model-parallel-size 2 --sequence-parallel {RECOMPUTE}",
    (4, "pp2 vpp2 cp2"): f"{INTERLEAVED} --context-parallel-size 2",
}
UNEQUAL = {
    (2, "pp2 1+3"): "--pipeline-model-parallel-size 2 --noop-layers 0,1",
    (2, "pp2 3+1"): "--pipeline-model-parallel-size 2 --decoder-first-pipeline-num-layers 3",
}
if unable(stage_sizes=[1, 3]) is None:
    LAYOUTS |= UNEQUAL
if unable(tied_and_sharded=True) is None:
    LAYOUTS[4, "pp2 vpp2 dp2 do overlap"] = f"{INTERLEAVED} --use-distributed-optimizer --overlap-grad-reduce"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs: one process first, then each layout in a world of its size."""
    folder = tmp_path_factory.mktemp("pipelines")
    data = make_datasets(folder)
    # Tied: the first and the last stage share a weight, and its gradients.
    model = make_hugging_face_model(folder / "hf", tied=True, vocab_size=400, layers=LAYERS)

    def command_line(mode: str, name: str, flags: str) -> list[str]:
        line = ["--data-path", str(data[mode]), *MODES[mode], "--load", str(model), "--enable-hf2mg-convert"]
        line += ["--micro-batch-size", "2", "--global-batch-size", "8", "--train-iters", str(STEPS), "--lr", "1e-3"]
        line += ["--split", "70,30,0", "--eval-interval", "2"]
        return [*line, "--save", str(folder / mode / name), *flags.split()]

    run([command_line(mode, "one", "") for mode in MODES], 1)
    for size in (2, 4):
        chosen = [(name, flags) for (ranks, name), flags in LAYOUTS.items() if ranks == size]
        run([command_line(mode, name, flags) for name, flags in chosen for mode in MODES], size)
    return folder


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for _, name in LAYOUTS])
def test_losses_and_gradient_norms_are_those_of_one_rank(runs: Path, mode: str, name: str) -> None:
    one, other = runs / mode / "one", runs / mode / name
    expected = losses(one)
    assert len(expected) == STEPS and expected[-1] < expected[0]
    assert losses(other) == pytest.approx(expected, **LAYOUT_LOSS)
    assert gradient_norms(other) == pytest.approx(gradient_norms(one), **LAYOUT_LOSS)
    evaluated = of_steps(one, "validation_loss")
    assert len(evaluated) == 2 and of_steps(other, "validation_loss") == pytest.approx(evaluated, **LAYOUT_LOSS)


@pytest.mark.parametrize("name", [name for _, name in LAYOUTS if name in ("pp2 vpp2", "pp2 1+3")])
def test_export_puts_the_stages_together(runs: Path, name: str) -> None:
    exported = {}
    for one in ("one", name):
        target = runs / "exported" / one
        if not target.exists():
            convert(ConvertConfig(load_dir=runs / "packed" / one, save_dir=target))
        exported[one] = load_file(target / "model.safetensors")
    assert exported["one"].keys() == exported[name].keys()
    for key, value in exported["one"].items():
        assert torch.allclose(exported[name][key], value, **TWENTY_STEPS_WEIGHTS), key


@pytest.mark.parametrize(
    "stages", [{"num_layers_per_virtual_pipeline_stage": 1}, {"num_layer_list": "3,1"}], ids=["interleaved", "unequal"]
)
def test_conversion_there_and_back_gives_equal_bytes(tmp_path: Path, stages: dict[str, int | str]) -> None:
    weights = make_hugging_face_model(tmp_path / "hf", tied=False, vocab_size=400, layers=LAYERS)
    there = ConvertConfig(
        load_model_type="hf",
        save_model_type="mg",
        load_dir=weights,
        save_dir=tmp_path / "mg",
        target_tensor_parallel_size=2,
        target_pipeline_parallel_size=2,
        **stages,  # type: ignore[arg-type]
    )
    convert(there)
    convert(ConvertConfig(load_dir=tmp_path / "mg", save_dir=tmp_path / "back"))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
