"""The weights of a checkpoint stage by stage, in whichever format: by the files of a layout, or layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mindspeed_ift.checkpoint import index, megatron, sharded
from mindspeed_ift.checkpoint.torch_file import LazyTensors, places, read_tensors
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout


def stages_of(manifest: dict[str, Any]) -> list[list[int]]:
    """Layers that lie in the same files; where nothing is bound to a layout, one after the other."""
    if manifest.get("format") == index.FORMAT:
        return [[layer, layer + 1] for layer in range(manifest["architecture"]["num_layers"])]
    return manifest["stage_layers"]


def layout_of_files(manifest: dict[str, Any]) -> Layout:
    """By which the files are cut."""
    return Layout() if manifest.get("format") == index.FORMAT else megatron.layout_of_manifest(manifest)


def read_stage(folder: Path, manifest: dict[str, Any], ranks: tuple[int, int], number: int) -> LazyTensors:
    """The state dict of a stage, which may be one of several of its pipeline rank, of a tensor and an expert rank.

    Raises:
        UserError: a file is missing or damaged.
    """
    layout, stages = layout_of_files(manifest), stages_of(manifest)
    if manifest.get("format") == index.FORMAT:
        reader = sharded.Reader(folder, check=True)
        return reader.stage(range(*stages[number]), first=number == 0, last=number == len(stages) - 1)
    expert = megatron.expert_rank(layout, ranks[1])
    place = megatron.shard_path(ranks[0], number % layout.pipeline, layout.pipeline, expert_rank=expert)
    path = megatron.checked_file(folder, place)
    shard = places(path)
    key = megatron.model_keys(len(stages) // layout.pipeline)[number // layout.pipeline]
    if key not in shard:
        raise UserError(f"{folder} has no {key} in the file of tensor rank {ranks[0]}; it is not as its manifest says")
    return read_tensors(path, shard[key])
