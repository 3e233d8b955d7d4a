"""Any layout = one rank: losses and gradient norms of every layout and sequence mode against those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.worlds import run
from tests.tolerances import LAYOUT_LOSS
from tests.training_runs import MODES, gradient_norms, losses, make_datasets, make_hugging_face_model

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


RING = "--context-parallel-size 2"
ULYSSES = f"{RING} --context-parallel-algo ulysses_cp_algo"
GATHER = f"{RING} --context-parallel-algo kvallgather_cp_algo"
HYBRID = "--context-parallel-size 4 --context-parallel-algo hybrid_cp_algo --ulysses-degree-in-cp 2"
RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
# Four heads in two groups: Ulysses over 4, and over 2 with tensor parallel 2, repeats the keys.
CONTEXT_LAYOUTS = {
    (2, "ring2"): RING,
    (2, "ring2 recompute"): f"{RING} {RECOMPUTE} --loss-compute-mode chunk --loss-chunk-size 16",
    (2, "ulysses2"): ULYSSES,
    (2, "gather2"): GATHER,
    (2, "gather2 selective"): f"{GATHER} --recompute-granularity selective",
    (3, "ring3"): RING.replace("2", "3"),  # 128 is no multiple of 6: rows are padded up
    (3, "gather3"): GATHER.replace("2", "3"),
    (4, "ring4"): RING.replace("2", "4"),
    (4, "ulysses4"): ULYSSES.replace("2", "4"),
    (4, "gather4"): GATHER.replace("2", "4"),
    (4, "hybrid2x2"): HYBRID,
    (4, "ring2 tp2 sp"): f"{RING} --tensor-model-parallel-size 2 --sequence-parallel",
    (4, "ulysses2 tp2 sp recompute"): f"{ULYSSES} --tensor-model-parallel-size 2 --sequence-parallel {RECOMPUTE}",
    (4, "gather2 tp2"): f"{GATHER} --tensor-model-parallel-size 2",
    (4, "ring2 pp2 recompute"): f"{RING} --pipeline-model-parallel-size 2 {RECOMPUTE}",
    (4, "ulysses2 pp2"): f"{ULYSSES} --pipeline-model-parallel-size 2",
    (4, "gather2 pp2 do"): f"{GATHER} --pipeline-model-parallel-size 2 --use-distributed-optimizer",
    (4, "ring2 dp2 do overlap"): f"{RING} --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather",
    (4, "ulysses2 dp2"): ULYSSES,
    (4, "gather2 dp2 do"): f"{GATHER} --use-distributed-optimizer",
    (
        8,
        "ring2 tp2 sp pp2",
    ): f"{RING} --tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 2",
}


def _modes_of(ranks: int, name: str) -> tuple[str, ...]:
    """Each algorithm meets every mode where it is alone; larger worlds are for what the axes do to each other."""
    return tuple(MODES) if ranks < 4 or "hybrid" in name else ("dynamic", "packed") if ranks < 8 else ("packed",)


# (ranks, sequence mode, tied embeddings, name, flags); tied embeddings do not notice the sequence mode, so one serves, nor
# that context parallelism cuts rows, but for the pipeline, whose first and last stage then share gradients.
RUNS = [
    (ranks, mode, tied, name, flags)
    for (ranks, name), flags in LAYOUTS.items()
    for mode in MODES
    for tied in ((True, False) if mode == "dynamic" else (False,))
] + [
    (ranks, mode, "pp2" in name, name, flags)
    for (ranks, name), flags in CONTEXT_LAYOUTS.items()
    for mode in _modes_of(ranks, name)
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs: one process first, then each layout in a world of its size."""
    folder = tmp_path_factory.mktemp("layouts")
    data = make_datasets(folder)
    weights = {
        tied: make_hugging_face_model(folder / f"hf_{tied}", tied=tied, vocab_size=400) for tied in (True, False)
    }

    def command_line(mode: str, tied: bool, name: str, flags: str) -> list[str]:
        line = ["--data-path", str(data[mode]), *MODES[mode], "--load", str(weights[tied]), "--enable-hf2mg-convert"]
        line += ["--micro-batch-size", "2", "--global-batch-size", "8", "--train-iters", str(STEPS), "--lr", "1e-3"]
        return [*line, "--save", str(folder / mode / str(tied) / name), *flags.split()]

    run([command_line(mode, tied, "one", "") for mode in MODES for tied in (True, False)], 1)
    for size in sorted({ranks for ranks, *_ in RUNS}):
        run([command_line(*rest) for ranks, *rest in RUNS if ranks == size], size)
    return folder


@pytest.mark.parametrize(
    ("mode", "tied", "name"),
    [
        pytest.param(mode, tied, name, id=f"{name}-{'tied' if tied else 'untied'}-{mode}")
        for _, mode, tied, name, _ in RUNS
    ],
)
def test_losses_and_gradient_norms_are_those_of_one_rank(runs: Path, mode: str, tied: bool, name: str) -> None:
    """Same weights, same data: the layout changes nothing."""
    one, other = (runs / mode / str(tied) / folder for folder in ("one", name))
    expected = losses(one)
    assert len(expected) == STEPS and expected[-1] < expected[0]
    assert losses(other) == pytest.approx(expected, **LAYOUT_LOSS)
    # Clipping and Adam hide the scale of the gradients from the losses.
    assert gradient_norms(other) == pytest.approx(gradient_norms(one), **LAYOUT_LOSS)
