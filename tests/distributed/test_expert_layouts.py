"""A mixture of experts in any layout = one rank, its balance too; and stopped and resumed = never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mindspeed_ift.checkpoint.convert import convert
from mindspeed_ift.checkpoint.source import Checkpoint
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.mcore import unable
from tests.distributed.worlds import run
from tests.tolerances import LAYOUT_LOSS, LORA_STEPS_WEIGHTS, TWENTY_STEPS_WEIGHTS
from tests.training_runs import MODES, losses, make_datasets, make_hugging_face_model, records

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STEPS = 4
BALANCED = unable(balance=True, stage_sizes=[1]) is None
"""Of this Megatron-core; what it does not balance is compared without."""
COMPARED = ("loss", "gradient_norm", *(["load_balancing_loss"] if BALANCED else []))
EP, TP, PP, CP = (f"--{name}-parallel-size 2" for name in ("expert-model", "tensor-model", "pipeline-model", "context"))
SP, ETP1, SHARDED = "--sequence-parallel", "--expert-tensor-parallel-size 1", "--use-distributed-optimizer"
RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
ALL = tuple(MODES)
# (ranks, name) -> sequence modes, flags. Experts are laid over the ranks of all other axes.
LAYOUTS = {
    (2, "ep2 do overlap"): (ALL, f"{EP} {SHARDED} --overlap-grad-reduce --overlap-param-gather"),
    (2, "tp2 sp etp1 do"): (("packed",), f"{TP} {SP} {ETP1} {SHARDED}"),
    (2, "tp2 sp ep2 etp1"): (("dynamic",), f"{TP} {SP} {EP} {ETP1}"),
    (4, "tp2 sp ep2 etp2"): (ALL, f"{TP} {SP} {EP}"),
    (4, "pp2 ep2 recompute"): (("packed",), f"{PP} {EP} {RECOMPUTE}"),
    (4, "pp2 vpp2 tp2 sp ep2 etp1 do"): (
        ("packed",),
        f"{PP} --num-layers-per-virtual-pipeline-stage 1 {TP} {SP} {EP} {ETP1} {SHARDED}",
    ),
    (4, "cp2 ep2 do"): (("packed",), f"{CP} {EP} {SHARDED}"),
    (4, "ep4 do"): (("dynamic",), f"--expert-model-parallel-size 4 {SHARDED}"),
    (8, "tp2 sp pp2 cp2 ep4 etp1 do"): (
        ("packed",),
        f"{TP} {SP} {PP} {CP} --expert-model-parallel-size 4 {ETP1} {SHARDED}",
    ),
}
# Adam divides by small second moments, which would magnify rounding.
ADAPTERS = "--lora-target-modules linear_qkv linear_proj linear_fc1 linear_fc2 --lora-r 4 --lr 1e-2 --adam-eps 1e-5"
ADAPTER_LAYOUTS = {
    (2, "lora ep2 do"): f"{EP} {SHARDED}",
    (4, "lora tp2 sp ep2 etp1 pp2 recompute"): f"{TP} {SP} {EP} {ETP1} {PP} {RECOMPUTE}",
    (4, "lora tp2 sp ep2 etp2 do"): f"{TP} {SP} {EP} {SHARDED}",
    (4, "lora tp2 sp etp2 files"): f"{TP} {SP} --ckpt-format torch",
}
# Fresh weights, of which each rank draws its own.
FRESH = (
    "--num-layers 2 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4 --num-query-groups 2 --kv-channels 16 "
    "--vocab-size 400 --num-experts 8 --moe-router-topk 2 --moe-ffn-hidden-size 48"
)
FRESH_LAYOUTS = {
    1: "",
    2: f"{TP} {SP} {EP} {ETP1}",
    4: f"{TP} {SP} {EP} {ETP1} {PP} --make-vocab-size-divisible-by 16",
}
# Saved and gone on with: ranks, flags; the first in files of its layout, as Megatron names them.
RESUMED = {
    "files": (2, f"{TP} {SP} {EP} {ETP1} --ckpt-format torch"),
    "bf16": (4, f"--expert-model-parallel-size 4 {SHARDED} --bf16"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process first, then each layout in a world of its size. The second of four layers is dense."""
    folder = tmp_path_factory.mktemp("experts")
    data = make_datasets(folder)
    weights = make_hugging_face_model(
        folder / "hf", tied=False, vocab_size=400, layers=4, experts={"mlp_only_layers": [1]}
    )

    def line(mode: str, name: str, flags: str, *more: str) -> list[str]:
        load = [] if "--load" in more or FRESH in flags else ["--load", str(weights), "--enable-hf2mg-convert"]
        words = ["--data-path", str(data[mode]), *MODES[mode], "--train-iters", str(STEPS), "--lr", "1e-3"]
        words += ["--micro-batch-size", "2", "--global-batch-size", "8"]
        words += ["--moe-aux-loss-coeff", "0.1" if BALANCED else "0"]
        return [*words, "--save", str(folder / mode / name), "--save-interval", "2", *flags.split(), *load, *more]

    def fresh(size: int) -> list[str]:
        return line("dynamic", f"fresh {size}", f"{FRESH} {FRESH_LAYOUTS[size]}")

    ones = [line(mode, "one", "") for mode in MODES]
    run([*ones, line("dynamic", "lora one", ADAPTERS), fresh(1)], 1)
    for size in (2, 4, 8):
        lines = [
            line("dynamic", name, f"{ADAPTERS} {flags}")
            for (ranks, name), flags in ADAPTER_LAYOUTS.items()
            if ranks == size
        ]
        lines += [
            line(mode, name, flags) for (n, name), (modes, flags) in LAYOUTS.items() if n == size for mode in modes
        ]
        lines += [fresh(size)] if size in FRESH_LAYOUTS else []
        for name, (ranks, flags) in RESUMED.items():
            if ranks == size:
                cut = f"{name} cut"
                lines.append(line("dynamic", name, flags))
                lines.append(line("dynamic", cut, flags, "--exit-interval", "3"))
                lines.append(line("dynamic", cut, flags, "--load", str(folder / "dynamic" / cut)))
        run(lines, size)
    return folder


@pytest.mark.parametrize(
    ("mode", "name"), [(mode, name) for (_, name), (modes, _) in LAYOUTS.items() for mode in modes]
)
def test_losses_gradient_norms_and_balance_are_those_of_one_rank(runs: Path, mode: str, name: str) -> None:
    one, other = records(runs / mode / "one"), records(runs / mode / name)
    assert len(one) == len(other) == STEPS and one[-1]["loss"] < one[0]["loss"]
    for key in COMPARED:
        assert [record[key] for record in other] == pytest.approx([record[key] for record in one], **LAYOUT_LOSS)
    assert all(record["load_balancing_loss"] > 1.0 for record in one if BALANCED)


@pytest.mark.parametrize("name", [name for _, name in ADAPTER_LAYOUTS])
def test_adapters_of_experts_are_those_of_one_rank(runs: Path, name: str, tmp_path: Path) -> None:
    """While they train, and merged."""
    one, other = (records(runs / "dynamic" / kind) for kind in ("lora one", name))
    assert one[-1]["loss"] < one[0]["loss"]
    for key in COMPARED:
        assert [record[key] for record in other] == pytest.approx([record[key] for record in one], **LAYOUT_LOSS)
    folders = []
    for kind in ("lora one", name):
        convert(ConvertConfig("mg", "hf", runs / "dynamic" / kind, tmp_path / kind))
        folders.append(load_file(tmp_path / kind / "model.safetensors"))
    for tensor in sorted(folders[0]):
        theirs, mine = (folder[tensor] for folder in folders)
        assert torch.allclose(mine, theirs, **LORA_STEPS_WEIGHTS), (tensor, (mine - theirs).abs().max())


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_is_uninterrupted_to_the_bit(runs: Path, name: str) -> None:
    whole, cut = (runs / "dynamic" / one for one in (name, f"{name} cut"))
    assert records(whole) == records(cut) and len(records(cut)) == STEPS
    folders = {path.name for path in (cut / "iter_0000004").iterdir() if path.is_dir()}
    assert folders == ({"mp_rank_00_000", "mp_rank_01_001"} if name == "files" else set())


@pytest.mark.parametrize("size", [2, 4])
def test_fresh_weights_are_those_of_one_rank(runs: Path, size: int) -> None:
    one, other = (losses(runs / "dynamic" / f"fresh {ranks}") for ranks in (1, size))
    assert other == pytest.approx(one, **LAYOUT_LOSS)


@pytest.mark.parametrize(
    ("mode", "name"), [(modes[-1], name) for (_, name), (modes, _) in LAYOUTS.items() if "overlap" not in name]
)
def test_the_checkpoint_is_that_of_one_rank(runs: Path, mode: str, name: str, tmp_path: Path) -> None:
    """Exported from its layout: the same names, and weights that differ by the order of summation."""
    folders = {}
    for one in ("one", name):
        folders[one] = tmp_path / one
        convert(ConvertConfig("mg", "hf", runs / mode / one, folders[one]))
    expected, found = (load_file(folders[one] / "model.safetensors") for one in ("one", name))
    assert found.keys() == expected.keys() and "model.layers.1.mlp.gate_proj.weight" in found
    assert Checkpoint(runs / mode / name / "iter_0000004").architecture.dense_layers == (1,)
    for tensor in sorted(expected):
        theirs, mine = (one[tensor] for one in (expected, found))
        assert torch.allclose(mine, theirs, **TWENTY_STEPS_WEIGHTS), (tensor, (mine - theirs).abs().max())
