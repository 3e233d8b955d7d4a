"""verify-packing: it holds where training is right, and says where it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.verify_packing import main
from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.layout import Layout
from mindspeed_ift.config.verify_packing import VerifyPackingConfig
from mindspeed_ift.model.attention import BoundaryAttention
from mindspeed_ift.model.build import Qwen3Model
from mindspeed_ift.verify.packing import Report, _tiny, verify_packing
from tests.tiny_dataset import sample, write_dataset
from tests.tiny_model import tiny_experts
from tests.training_runs import make_datasets

PACKED = ["--reset-attention-mask", "--reset-position-ids"]
CLAIMS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Mode of training -> dataset."""
    return make_datasets(tmp_path_factory.mktemp("packing"))


def line(data: Path, *flags: str) -> list[str]:
    return ["--data-path", str(data), "--preset", "qwen3-8b", "--train-iters", "3", "--seq-length", "128", *flags]


def verify(data: Path, *flags: str) -> Report:
    return verify_packing(parse(VerifyPackingConfig, line(data, *flags), program="verify-packing"), world_size=1)


def test_what_training_does_holds(data: dict[str, Path]) -> None:
    """Two rows a micro-batch, two stages, recompute, both precisions, pads behind each row."""
    layout = ["--pipeline-model-parallel-size", "2", "--tensor-model-parallel-size", "4", "--micro-batch-size", "2"]
    recompute = ["--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "6"]
    report = verify(data["packed"], *PACKED, *layout, *recompute, "--bf16")
    assert len(report.checks) == 2 * (CLAIMS + 2) and report.holds
    assert [check.dtype for check in report.checks] == [torch.float32] * 6 + [torch.bfloat16] * 6
    poison = [check for check in report.checks if "tokens" in check.name]
    assert len(poison) == 4 and {check.worst for check in poison} == {0.0}
    gradient = report.checks[1]
    assert 0 < gradient.worst < 1e-5 and "of stage" in gradient.where, "it was computed in another order"
    assert report.checks[4].examined == "embedding, layers 1-2" and report.checks[5].examined == "layers 3-4, head"
    assert report.notices[0] == "boundaries: stored with the rows"
    assert "start it with torchrun --nproc_per_node 8" in report.notices[1] and len(report.notices) == 2


@pytest.mark.parametrize("reduction", ["sample", "micro-batch"])
def test_a_mixture_of_experts_and_another_loss(data: dict[str, Path], reduction: str) -> None:
    flags = ["--preset", "qwen3-30b-a3b", "--pipeline-model-parallel-size", "2", "--loss-reduction", reduction]
    report = verify(data["packed"], *PACKED, *flags)
    assert report.holds and len(report.checks) == CLAIMS + 2 and report.checks[0].worst < 1e-6
    assert any("weighs a sample by what else" in one for one in report.notices) == (reduction == "micro-batch")


@pytest.mark.parametrize(
    "flags",
    [
        ["--pack", *PACKED],
        ["--pack", "--reset-attention-mask", "--loss-compute-mode", "chunk", "--loss-chunk-size", "7"],
        ["--pack", *PACKED, "--lora-target-modules", "linear_qkv", "linear_fc2", "--lora-dropout", "0.5", "--use-dora"],
    ],
)
def test_rows_that_are_made_as_the_run_starts(data: dict[str, Path], flags: list[str]) -> None:
    """Positions that go on, a chunked loss, adapters."""
    report = verify(data["fixed"], *flags)
    assert report.holds and len(report.checks) == CLAIMS
    assert any("positions go on through a row, up to 128" in one for one in report.notices) == (
        "--use-dora" not in flags and "chunk" in flags
    )


def test_experts_of_a_mixture_with_dense_layers(data: dict[str, Path]) -> None:
    """A trial has two layers, of a model whose first and seventh are dense; and of one whose first two are."""
    mixed = tiny_experts(num_layers=8, dense_layers=(0, 6))
    tiny = _tiny(mixed, Layout(), layers=2, vocabulary=30)
    assert (tiny.dense_layers, tiny.num_experts, tiny.moe_ffn_hidden_size) == ((0,), 4, 128)
    assert not _tiny(replace(mixed, dense_layers=(0, 1)), Layout(), layers=2, vocabulary=30).dense_layers
    assert verify(data["packed"], *PACKED, "--preset", "qwen3-30b-a3b").holds


def test_without_the_mask_nothing_holds(data: dict[str, Path]) -> None:
    report = verify(data["packed"], "--bf16")
    assert not any(check.holds for check in report.checks)
    assert all("sample" in check.where or "stage" in check.where for check in report.checks)
    assert "samples of a row see each other: --reset-attention-mask is not given" in report.notices


def _lost_in_later_stages(forward: Callable) -> Callable:
    """Boundaries that do not arrive."""

    def broken(self: Qwen3Model, tokens: Any, positions: Any, boundaries: Any, **rest: Any) -> Any:
        arriving = boundaries if self.pre_process else None
        return forward(self, tokens, positions, arriving, **rest)

    return broken


def test_boundaries_that_do_not_reach_a_stage(data: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Qwen3Model, "forward", _lost_in_later_stages(Qwen3Model.forward))
    report = verify(data["packed"], *PACKED, "--pipeline-model-parallel-size", "3", "--num-layer-list", "10,10,16")
    assert [check.holds for check in report.checks] == [True] * (CLAIMS + 1) + [False] * 2
    assert "row 0 sample" in report.checks[-2].where


def test_a_boundary_that_is_lost(data: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As where micro-batches of several rows are taken for one (and the second sample sees the first)."""
    forward = BoundaryAttention.forward

    def broken(self: BoundaryAttention, query: Any, key: Any, value: Any, mask: Any = None, **rest: Any) -> Any:
        return forward(self, query, key, value, None if mask is None else mask[[0, *range(2, len(mask))]], **rest)

    monkeypatch.setattr(BoundaryAttention, "forward", broken)
    report = verify(data["packed"], *PACKED, "--micro-batch-size", "2")
    assert not any(check.holds for check in report.checks)


def test_what_looks_odd_is_said(tmp_path: Path, data: dict[str, Path]) -> None:
    """A sample of two conversations, a question parted from its answer, and a row that is cut."""
    opening = list(range(10, 18))
    ids = [*opening, 30, *opening, 31, 40, 41, 42, 43]
    labels = [-100] * 8 + [30] + [-100] * 8 + [31] + [-100] * 2 + [42, 43]
    rows = [sample(ids * 4, labels * 4, np.tile(np.repeat([1, 2, 3], [18, 2, 2]), 4).tolist()) for _ in range(2)]
    manifest = {"pack": True, "neat_pack": True, "vocab_size": 60, "eod_id": 1, "pad_id": 2, "turn_end_ids": [1]}
    write_dataset(tmp_path / "odd", rows, manifest | {"prompt_type": None})
    report = verify(tmp_path / "odd", *PACKED, "--verify-tokens", "64", "--verify-rows", "1")
    told = "\n".join(report.notices)
    assert "1 of 1 rows are longer than --verify-tokens 64" in told
    assert "4 of 12 samples look like several (row 0 sample 1 repeats its opening)" in told
    assert "4 of 12 samples learn nothing (row 0 sample 2)" in told
    assert report.holds, "what is odd may be meant"


def test_the_table_and_the_exit_code(data: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A pasted line of training is taken as it is, folders and flags of others included."""
    pasted = ["--save", "nowhere/run", "--save-interval", "5", "--lr", "1e-5", "--use-flash-attn", "--verify-rows", "1"]
    assert main(line(data["packed"], *PACKED, *pasted)) == 0
    said = capsys.readouterr().out
    assert "packed rows teach what their samples do" in said and not Path("nowhere").exists()
    assert main(line(data["packed"], *pasted)) == 1
    said = capsys.readouterr().out
    assert said.count("FAILS") == CLAIMS and "4 of 4 claims do not hold" in said


@pytest.mark.parametrize(
    ("mode", "flags", "message"),
    [
        ("fixed", PACKED, "holds one sample a row, so there is no packing to verify; give --pack"),
        ("fixed", ["--verify-rows", "0"], "--verify-rows 0 must be at least 1"),
        ("packed", ["--verify-tokens", "9"], "--verify-tokens 9 must be at least 64"),
        ("packed", ["--neat-pack"], "--neat-pack needs --reset-attention-mask"),
        ("unmarked", PACKED, "does not say where the samples of a packed row end"),
        ("unmarked", [], "does not say where the samples of a row end, and without --reset-attention-mask they see"),
    ],
)
def test_one_line_where_there_is_nothing_to_check(
    data: dict[str, Path],
    tmp_path: Path,
    mode: str,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Unmarked: rows of --pack without --neat-pack whose turns end in the end-of-document token."""
    ids, labels = [5, 1, 6, 1], [-100, -100, 6, 1]
    manifest = {"pack": True, "vocab_size": 60, "eod_id": 1, "pad_id": 2, "turn_end_ids": [1], "prompt_type": None}
    unmarked = write_dataset(tmp_path / "unmarked", [sample(ids * 3, labels * 3)] * 2, manifest)
    with pytest.raises(SystemExit) as stop:
        run(main, line({**data, "unmarked": unmarked}[mode], *flags))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and message in said and said.count("\n") == 1


def test_a_configuration_is_that_of_training_and_more() -> None:
    config = parse(VerifyPackingConfig, ["--lr", "1", "--verify-rows", "7"], program="test")
    assert config.optimizer.lr == 1 and replace(config).verify.verify_rows == 7
