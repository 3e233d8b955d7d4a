"""Any layout = one rank: the losses of every layout and sequence mode against those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tolerances import LAYOUT_LOSS
from tests.training_runs import MODES, losses, make_datasets, make_hugging_face_model, run

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STEPS = 4
LAYOUTS = {
    (2, "tp2"): "--tensor-model-parallel-size 2",
    (2, "tp2 sp"): "--tensor-model-parallel-size 2 --sequence-parallel",
    (2, "pp2"): "--pipeline-model-parallel-size 2",
    (2, "dp2"): "",
    (2, "dp2 do"): "--use-distributed-optimizer",
    (2, "dp2 do overlap"): "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather",
    (2, "tp2 sp recompute"): "--tensor-model-parallel-size 2 --sequence-parallel --recompute-granularity full "
    "--recompute-method uniform --recompute-num-layers 1 --loss-compute-mode chunk --loss-chunk-size 16",
    (4, "tp2 pp2"): "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2",
    (4, "tp2 sp pp2"): "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --sequence-parallel",
    (4, "tp2 dp2"): "--tensor-model-parallel-size 2",
    (4, "tp2 sp dp2 do"): "--tensor-model-parallel-size 2 --sequence-parallel --use-distributed-optimizer",
    (4, "pp2 dp2"): "--pipeline-model-parallel-size 2",
    (4, "pp2 dp2 do"): "--pipeline-model-parallel-size 2 --use-distributed-optimizer",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs: one process first, then each layout in a torchrun of its size."""
    folder = tmp_path_factory.mktemp("layouts")
    data = make_datasets(folder)
    weights = {
        tied: make_hugging_face_model(folder / f"hf_{tied}", tied=tied, vocab_size=400) for tied in (True, False)
    }

    def command_line(mode: str, tied: bool, name: str, flags: str) -> list[str]:
        line = ["--data-path", str(data[mode]), *MODES[mode], "--load", str(weights[tied]), "--enable-hf2mg-convert"]
        line += ["--micro-batch-size", "2", "--global-batch-size", "8", "--train-iters", str(STEPS), "--lr", "1e-3"]
        return [*line, "--save", str(folder / mode / str(tied) / name), *flags.split()]

    combinations = [(mode, tied) for mode in MODES for tied in (True, False)]
    run([command_line(mode, tied, "one", "") for mode, tied in combinations], 1, folder / "1")
    for size in (2, 4):
        chosen = [(name, flags) for (ranks, name), flags in LAYOUTS.items() if ranks == size]
        lines = [command_line(*combination, name, flags) for name, flags in chosen for combination in combinations]
        run(lines, size, folder / str(size))
    return folder


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", [name for _, name in LAYOUTS])
def test_losses_are_those_of_one_rank(runs: Path, mode: str, tied: bool, name: str) -> None:
    """Same weights, same data: the layout changes nothing."""
    expected = losses(runs / mode / str(tied) / "one")
    assert len(expected) == STEPS and expected[-1] < expected[0]
    assert losses(runs / mode / str(tied) / name) == pytest.approx(expected, **LAYOUT_LOSS)
