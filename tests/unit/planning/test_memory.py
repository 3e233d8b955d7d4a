"""Plans against what built models take: parameters and states to the byte, activations and peaks within a tolerance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.layout import Layout, LayoutFlags
from mindspeed_ift.config.lora import LoraFlags
from mindspeed_ift.devices.device import current
from mindspeed_ift.model import head
from mindspeed_ift.model.build import ModelOptions, build_model
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.planning import memory
from mindspeed_ift.planning.memory import Case, in_flight, memory_of_ranks, peaks_of_rank
from mindspeed_ift.planning.parameters import model_parameters, stage_parameters
from mindspeed_ift.verify.stages import build_pipeline
from tests.measured_memory import config_of, measure
from tests.tiny_model import tiny_architecture
from tests.tolerances import PLANNED_ACTIVATIONS, PLANNED_PEAK

SIZES: dict[str, Any] = {"num_layers": 4, "hidden_size": 128, "ffn_hidden_size": 384, "num_attention_heads": 8}
SIZES |= {"num_query_groups": 2, "kv_channels": 32, "vocab_size": 2000}
DENSE = Architecture(**SIZES)
EXPERTS = Architecture(**SIZES, num_experts=8, moe_router_topk=2, moe_ffn_hidden_size=64, dense_layers=(0,))
LORA = LoraFlags(lora_target_modules=("linear_qkv", "linear_fc2"), lora_r=4, use_dora=True)
PLAIN = LoraFlags(lora_target_modules=("linear_proj", "linear_fc1"), lora_modules_to_save=("input_layernorm",))
FULL = {"recompute_granularity": "full"}


CASES = {
    "bf16 packed": (DENSE, config_of(bf16=True, packed=True)),
    "bf16": (DENSE, config_of(bf16=True, micro_batch_size=2)),
    "fp32 packed": (DENSE, config_of(packed=True, micro_batch_size=2)),
    "fp32 as many groups as heads": (replace(DENSE, num_query_groups=8, tied=True), config_of()),
    "selective": (DENSE, config_of(bf16=True, recompute_granularity="selective", packed=True)),
    "uniform 1": (DENSE, config_of(bf16=True, **FULL, recompute_method="uniform", micro_batch_size=4)),
    "uniform 2": (DENSE, config_of(bf16=True, **FULL, recompute_method="uniform", recompute_num_layers=2, packed=True)),
    "block": (DENSE, config_of(bf16=True, **FULL, recompute_method="block", recompute_num_layers=3, packed=True)),
    "distributed optimizer": (DENSE, config_of(bf16=True, layout=LayoutFlags(use_distributed_optimizer=True))),
    "fp32 distributed optimizer": (DENSE, config_of(layout=LayoutFlags(use_distributed_optimizer=True))),
    "experts": (EXPERTS, config_of(bf16=True, packed=True)),
    "experts uniform 1": (EXPERTS, config_of(**FULL, recompute_method="uniform", packed=True, micro_batch_size=4)),
    "adapters": (DENSE, config_of(LORA, bf16=True, packed=True)),
    "adapters elsewhere": (DENSE, config_of(PLAIN, micro_batch_size=2)),
    "adapters uniform 1": (DENSE, config_of(LORA, bf16=True, **FULL, recompute_method="uniform", micro_batch_size=4)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_what_is_measured(groups: Groups, name: str) -> None:
    architecture, config = CASES[name]
    case = Case(config, architecture, Layout(), row=256, micro_batches=1)
    measured, (planned,) = measure(case, groups), memory_of_ranks(case)
    assert (planned.weights, planned.gradients, planned.optimizer) == (
        measured.weights,
        measured.gradients,
        measured.optimizer,
    )
    assert planned.activations == pytest.approx(measured.saved, rel=PLANNED_ACTIVATIONS)
    peaks = peaks_of_rank(case, 0)
    assert max(peaks[moment] for moment in peaks if moment != "update") == pytest.approx(
        measured.peak, rel=PLANNED_PEAK
    )
    assert planned.activations + planned.temporary == max(peaks.values())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [LoraFlags(), replace(LORA, lora_modules_to_save=("word_embeddings",))])
def test_parameters_of_each_stage(groups: Groups, tied: bool, lora: LoraFlags) -> None:
    """Held and trained, as each process of a pipeline would build them; of a tied model the last one has a copy."""
    architecture = replace(DENSE, tied=tied)
    options = ModelOptions(padded_vocab=2048, lora=lora if lora.active else None)
    layout = Layout(pipeline=4)
    for stage, model in enumerate(build_pipeline(architecture, options, groups, 4, current())):
        count = stage_parameters(architecture, layout, lora, 2048, stage)
        assert count.held == sum(one.numel() for one in model.parameters())
        trained = [one.numel() for one in model.parameters() if one.requires_grad]
        assert count.trained == sum(trained) and count.largest == max(trained)


@pytest.mark.parametrize(
    "lora",
    [
        LoraFlags(),
        LoraFlags(("linear_qkv", "linear_fc1", "linear_fc2"), lora_r=4),
        LoraFlags(("linear_fc1",), lora_r=4, lora_modules_to_save=("linear_fc2", "router")),
    ],
)
def test_parameters_of_experts_and_their_adapters(groups: Groups, lora: LoraFlags) -> None:
    options = ModelOptions(padded_vocab=2048, lora=lora if lora.active else None)
    model = build_model(EXPERTS, options, groups)
    count = stage_parameters(EXPERTS, Layout(), lora, 2048, 0)
    trained = {name: one.numel() for name, one in model.named_parameters() if one.requires_grad}
    of_experts = {name: size for name, size in trained.items() if ".experts." in name}
    assert count.held == sum(one.numel() for one in model.parameters())
    assert count.trained_experts == sum(of_experts.values()) > 0
    assert count.trained + count.trained_experts == sum(trained.values()) and count.largest == max(trained.values())


@pytest.mark.parametrize(
    "lora", [LoraFlags(), replace(PLAIN, lora_target_modules=("linear_qkv", "linear_fc1", "linear_fc2"))]
)
def test_parameters_of_experts(groups: Groups, lora: LoraFlags) -> None:
    """Of experts apart, for other ranks share them; adapters are each expert's own."""
    options = ModelOptions(padded_vocab=2000, lora=lora if lora.active else None)
    (model,) = build_pipeline(EXPERTS, options, groups, 1, current())
    count = stage_parameters(EXPERTS, Layout(), lora, 2000, 0)
    sizes = {name: one.numel() for name, one in model.named_parameters() if one.requires_grad}
    assert count.held == sum(one.numel() for one in model.parameters())
    assert count.trained_experts == sum(size for name, size in sizes.items() if ".experts." in name) > 0
    assert count.trained == sum(size for name, size in sizes.items() if ".experts." not in name)
    assert count.largest == max(sizes.values())


def test_parameters_of_models() -> None:
    """Those that their authors state."""
    assert model_parameters(Architecture.from_preset("qwen3-8b"))[0] == 8_190_735_360
    assert model_parameters(Architecture.from_preset("qwen3-0.6b"))[0] == 596_049_920
    whole, active = model_parameters(Architecture.from_preset("qwen3-30b-a3b"))
    assert round(whole / 1e9, 1) == 30.5 and round(active / 1e9, 2) == 3.35


def test_what_is_split_is_a_share() -> None:
    """Tensor, expert and replicas."""
    whole, none = stage_parameters(EXPERTS, Layout(), LoraFlags(), 2000, 0), LoraFlags()
    halves = stage_parameters(EXPERTS, Layout(tensor=2, sequence_parallel=True), none, 2000, 0)
    alike = 4 * (2 * 128 + 2 * 32) + 128 + 3 * 8 * 128  # norms and routers
    assert halves.held == alike + (whole.held - alike) // 2
    apart = stage_parameters(EXPERTS, Layout(data=4, expert=4), none, 2000, 0)
    assert apart.trained_experts * 4 == whole.trained_experts and apart.trained == whole.trained
    config = config_of(bf16=True, layout=LayoutFlags(use_distributed_optimizer=True))
    (one,) = memory_of_ranks(Case(config, EXPERTS, Layout(data=8, expert=2, expert_tensor=1), 64, 1))
    # Each expert is held by 8 / 2 devices, all else by 8.
    assert one.optimizer == 12 * (-(-whole.trained // 8) + whole.trained_experts // 2 // 4)
    offloaded = replace(config, optimizer=replace(config.optimizer, optimizer_cpu_offload=True))
    (host,) = memory_of_ranks(Case(offloaded, EXPERTS, Layout(data=8, expert=2, expert_tensor=1), 64, 1))
    assert host.optimizer * 3 == one.optimizer


def test_fp16_takes_what_bf16_takes() -> None:
    half, brain = (
        memory_of_ranks(Case(config_of(**{name: True}), DENSE, Layout(), 64, 1)) for name in ("fp16", "bf16")
    )
    assert half == brain


@pytest.mark.parametrize(
    ("layout", "micro_batches", "rank", "expected"),
    [
        (Layout(pipeline=4), 8, 0, [0] * 4),
        (Layout(pipeline=4), 8, 3, [3]),
        (Layout(pipeline=4), 2, 0, [0] * 2),
        (Layout(pipeline=2, chunk_layers=1), 4, 0, [0, 0, 2, 2, 4]),
        (Layout(pipeline=2, chunk_layers=1), 4, 1, [1, 1, 3]),
    ],
)
def test_micro_batches_in_flight(layout: Layout, micro_batches: int, rank: int, expected: list[int]) -> None:
    architecture = tiny_architecture(num_layers=4 if layout.pipeline == 4 else 6)
    if layout.pipeline == 2:
        expected = {0: [0, 0, 2, 2, 4, 4, 0], 1: [1, 1, 3, 3, 5]}[rank]
    assert in_flight(Case(config_of(), architecture, layout, 8, micro_batches), rank) == expected


def test_the_first_rank_of_a_pipeline_keeps_most() -> None:
    ranks = memory_of_ranks(Case(config_of(bf16=True), DENSE, Layout(pipeline=4), 4096, 8))
    assert [ranks[0].activations > one.activations for one in ranks] == [False, True, True, True]
    shared = memory_of_ranks(Case(config_of(bf16=True), DENSE, Layout(pipeline=4, context=2), 4096, 8))
    assert shared[0].activations == ranks[0].activations // 2


def test_sizes_of_the_head_are_its_own() -> None:
    assert (memory.PIECE_BYTES, memory.KEPT_BYTES) == (head._PIECE_BYTES, head._KEPT_BYTES)
    assert memory.TILE_POSITIONS == head._TILE_POSITIONS
