"""Training through the NPU's kernels, on the real torch_npu with reference mathematics, has the losses of plain torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.device import torch_npu_schemas, torch_npu_wheel
from tests.device.operator_table import MARK, documents_without, table_of
from tests.distributed.worlds import run
from tests.tolerances import BF16_LAYOUT, LAYOUT_LOSS
from tests.training_runs import MODES, gradient_norms, losses, make_datasets, make_hugging_face_model

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STEPS = 3
RING = "--context-parallel-size 2"
RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
RUNS = {
    "fixed": ("fixed", ""),
    "packed": ("packed", "--use-distributed-optimizer"),
    "packed ring": ("packed", RING),
    "packed ring bf16 recomputed": ("packed", f"{RING} --bf16 {RECOMPUTE}"),
    "packed gathered": ("packed", f"{RING} --context-parallel-algo kvallgather_cp_algo"),
    "packed experts": ("packed", "--expert-model-parallel-size 2"),
    "packed experts bf16": ("packed", "--bf16"),
}
"""Name -> sequence mode and flags, on two ranks."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run with plain and with the NPU's kernels, two ranks each."""
    folder = tmp_path_factory.mktemp("npu")
    try:
        environment = torch_npu_wheel.environment(torch_npu_wheel.build_stand_ins(folder / "cann"))
    except torch_npu_wheel.Unavailable as reason:
        pytest.skip(str(reason))
    data = make_datasets(folder)
    dense = make_hugging_face_model(folder / "dense", tied=False, vocab_size=400)
    experts = make_hugging_face_model(folder / "experts", tied=False, vocab_size=400, experts={})
    lines = []
    for name, (mode, flags) in RUNS.items():
        for kernels in ("plain", "npu"):
            line = ["--data-path", str(data[mode]), *MODES[mode], "--enable-hf2mg-convert", *flags.split()]
            line += ["--load", str(experts if "experts" in name else dense)]
            line += ["--micro-batch-size", "2", "--global-batch-size", "8", "--train-iters", str(STEPS), "--lr", "1e-3"]
            lines.append([kernels, *line, "--save", str(folder / kernels / name)])
    run(lines, 2, "tests.device.kernel_worker", environment)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_losses_and_gradient_norms_are_those_of_plain_torch(runs: Path, name: str) -> None:
    plain, fused = runs / "plain" / name, runs / "npu" / name
    expected = losses(plain)
    assert len(expected) == STEPS and expected[-1] < expected[0]
    tolerance = BF16_LAYOUT if "bf16" in name else LAYOUT_LOSS
    # What is rounded to 8 bits elsewhere sends a token to another expert sooner or later.
    steps = 1 if name == "packed experts bf16" else STEPS
    assert losses(fused)[:steps] == pytest.approx(expected[:steps], **tolerance)
    assert gradient_norms(fused)[:steps] == pytest.approx(gradient_norms(plain)[:steps], **tolerance)
    assert not _calls([plain]) and "npu_fusion_attention" in {operator for operator, *_ in _calls([fused])}


def test_the_document_names_every_call(runs: Path) -> None:
    """To write what the runs called into docs/devices.md and its twin: ``REFRESH_OPERATOR_TABLE=1`` in the environment."""
    if missing := torch_npu_schemas.missing(torch_npu_wheel.VERSION):
        pytest.skip(f"torch_npu {torch_npu_wheel.VERSION} calls less: {missing}")
    calls = _calls([runs / "npu" / name for name in RUNS])
    others = documents_without(MARK, table_of(calls))
    assert not others, "run this test with REFRESH_OPERATOR_TABLE=1 and look at what changes"


def _calls(folders: list[Path]) -> set[tuple[str, str, str]]:
    files = [file for folder in folders for file in folder.glob("calls-*.json")]
    assert len(files) == 2 * len(folders)
    return {tuple(call) for file in files for call in json.loads(file.read_text(encoding="utf-8"))}
