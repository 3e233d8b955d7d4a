"""The weights of a checkpoint stage by stage, in whichever format: by the files of a layout, or layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from mindspeed_ift.checkpoint import index, megatron, sharded
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout


def placement(manifest: dict[str, Any]) -> tuple[Any, ...]:
    """What must be alike for the files of two checkpoints to hold the same parts of their weights."""
    if manifest.get("format") == index.FORMAT:
        return (index.FORMAT,)
    layout = layout_of_files(manifest)
    return (
        layout.shards(),
        layout.tensor_of_experts,
        layout.pipeline,
        manifest["stage_layers"],
        manifest["padded_vocab_size"],
    )


def stages_of(manifest: dict[str, Any]) -> list[list[int]]:
    """Layers that lie in the same files; where nothing is bound to a layout, one after the other."""
    if manifest.get("format") == index.FORMAT:
        return [[layer, layer + 1] for layer in range(manifest["architecture"]["num_layers"])]
    return manifest["stage_layers"]


def layout_of_files(manifest: dict[str, Any]) -> Layout:
    """By which the files are cut."""
    return Layout() if manifest.get("format") == index.FORMAT else megatron.layout_of_manifest(manifest)


def read_stage(folder: Path, manifest: dict[str, Any], ranks: tuple[int, int], number: int) -> dict[str, Tensor]:
    """The state dict of a stage, which may be one of several of its pipeline rank, of a tensor and an expert rank.

    Raises:
        UserError: a file is missing or damaged.
    """
    layout, stages = layout_of_files(manifest), stages_of(manifest)
    if manifest.get("format") == index.FORMAT:
        reader = sharded.Reader(folder, check=True)
        return reader.stage(range(*stages[number]), first=number == 0, last=number == len(stages) - 1)
    shard = megatron.read_shard(
        folder, ranks[0], number % layout.pipeline, layout.pipeline, expert_rank=megatron.expert_rank(layout, ranks[1])
    )
    key = megatron.model_keys(len(stages) // layout.pipeline)[number // layout.pipeline]
    if key not in shard:
        raise UserError(f"{folder} has no {key} in the file of tensor rank {ranks[0]}; it is not as its manifest says")
    return shard[key]
