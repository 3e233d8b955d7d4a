"""LoRA adapters in a checkpoint: what its manifest says of them, and merging them into the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.config.lora import LoraFlags

_DESCRIBED = (
    "lora_target_modules",
    "lora_r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "lora_modules_to_save",
)


def describe_adapters(lora: LoraFlags | None) -> dict[str, Any] | None:
    """What a manifest says of a run's adapters under ``lora``; None for a run without."""
    if lora is None:
        return None
    facts = {name: getattr(lora, name) for name in _DESCRIBED}
    lists = {name: list(value) for name, value in facts.items() if isinstance(value, tuple)}
    return {**facts, **lists, "filtered": lora.lora_ckpt_filter}


def adapters_of(checkpoint: Path) -> dict[str, Any] | None:
    """What a checkpoint's manifest says of its adapters; None if it has none, or no manifest."""
    return (megatron.read_manifest(checkpoint) or {}).get("lora")


def flags_of(facts: Mapping[str, Any]) -> LoraFlags:
    """The flags that a manifest describes."""
    values = {name: tuple(value) if isinstance(value := facts[name], list) else value for name in _DESCRIBED}
    return LoraFlags(**values)


def merge_adapters(
    name: str, weights: Sequence[Tensor], shards: Sequence[Mapping[str, Tensor]], lora: LoraFlags
) -> list[Tensor]:
    """A weight with its adapter merged, shard by shard, summed in fp32; as it is if it has none.

    Args:
        name: of the weight, ``....linear_qkv.weight``, or of the experts of a rank, ``....experts.weight1``.
        weights: its shard of each tensor rank, ``[O, I]``.
        shards: the state dict of each tensor rank, with the adapters.
        lora: scale and kind.
    """
    if name[-1] in "12":
        return [_merge_experts(name, *pair, lora) for pair in zip(weights, shards, strict=True)]
    prefix = name.removesuffix("weight")
    if f"{prefix}lora_A" not in shards[0]:
        return list(weights)
    factors = [[shard[f"{prefix}lora_{factor}"].float() for factor in "BA"] for shard in shards]
    merged = [weight.float() + lora.scale * (b @ a) for weight, (b, a) in zip(weights, factors, strict=True)]
    if lora.use_dora:
        squares = [one.pow(2).sum(1) for one in merged]
        if prefix.endswith(("linear_proj.", "linear_fc2.")):  # their rows are split over the ranks
            squares = [torch.stack(squares).sum(0)] * len(squares)
        lengths = [shard[f"{prefix}lora_magnitude"].float() for shard in shards]
        merged = [one * (m / s.sqrt())[:, None] for one, m, s in zip(merged, lengths, squares, strict=True)]
    return [one.to(weight.dtype) for one, weight in zip(merged, weights, strict=True)]


def _merge_experts(name: str, weight: Tensor, shard: Mapping[str, Tensor], lora: LoraFlags) -> Tensor:
    """``weight1`` or ``weight2`` of an expert rank: in memory ``[E, I, O]``, as the product of its factors."""
    a, b = (shard.get(name.replace("weight", f"lora_{factor}")) for factor in "AB")
    if a is None or b is None:
        return weight
    each = weight.reshape(*a.shape[:2], -1).float() + lora.scale * (a.float() @ b.reshape(*b.shape[:2], -1).float())
    return each.reshape(weight.shape).to(weight.dtype)
