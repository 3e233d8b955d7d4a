"""The ``torch`` format: a file of weights and a file of optimizer state for each rank that holds its own.

They hold what a rank has, cut as its layout cuts it, so only the same layout can go on from them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.arguments import arguments_of
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.model.build import Qwen3Model
from mindspeed_ift.model.weights import fill
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.training.sharding import MOMENTS, moved

Shards = dict[str, dict[str, Any]]
"""Path of a rank's file in a checkpoint -> what it holds, tensors on the host."""


def shards(
    iteration: int,
    stages: list[Qwen3Model],
    optimizer: Any,
    groups: Groups,
    distributed_optimizer: bool,
    saved: Callable[[Qwen3Model, str], bool],
) -> Shards:
    """What this rank writes: one replica the weights, and each that has optimizer state of its own that."""
    content: Shards = {}
    if groups.model_writer:
        model = stages[0]
        arguments = arguments_of(model.architecture, groups.layout, model.options.padded_vocab, iteration)
        state: dict[str, Any] = {"args": arguments, "checkpoint_version": 3.0, "iteration": iteration}
        for key, stage in zip(megatron.model_keys(len(stages)), stages, strict=True):
            tensors = {name: value for name, value in stage.state_dict().items() if isinstance(value, torch.Tensor)}
            state[key] = _on_host({name: value for name, value in tensors.items() if saved(stage, name)})
        content[_path(groups, megatron.MODEL_FILE)] = state
    if groups.model_writer or distributed_optimizer:
        entries = [_on_host(one) for one in optimizer_entries(optimizer)]
        content[_path(groups, optimizer_file(groups, distributed_optimizer))] = {"optimizer": entries}
    return content


def files_read(groups: Groups, distributed_optimizer: bool) -> list[str]:
    """Paths, in a checkpoint, of what this rank reads."""
    names = (megatron.MODEL_FILE, optimizer_file(groups, distributed_optimizer))
    return [_path(groups, name) for name in names]


def _path(groups: Groups, name: str) -> str:
    """Where this rank's file of that name lies in a checkpoint."""
    return megatron.shard_path(groups.layout, groups.tensor_rank, groups.pipeline_rank, groups.expert_rank, name)


def load_weights(folder: Path, stages: list[Qwen3Model], groups: Groups, wanted: Callable[[str], bool]) -> None:
    """Fill the ``wanted`` parameters of this rank's stages from a checkpoint of the same tensor, pipeline and expert
    layout.

    Raises:
        UserError: another layout, a missing or damaged file.
    """
    manifest = megatron.read_manifest(folder)
    if manifest is not None:
        architecture = stages[0].architecture
        saved, mine = (
            f"TP {one.tensor} PP {one.pipeline}"
            + (f" EP {one.expert} ETP {one.tensor_of_experts}" if architecture.num_experts else "")
            for one in (megatron.layout_of_manifest(manifest), groups.layout)
        )
        if saved != mine:
            raise UserError(
                f"{folder} was saved with {saved}, this run has {mine}; use the saved layout (--ckpt-format torch_dist"
                " is not bound to it), or convert it with tools/convert_ckpt.py"
            )
        if manifest["stage_layers"] != megatron.stage_layers(architecture, groups.layout):
            raise UserError(
                f"{folder} was saved with other layers on its pipeline devices; give the same --num-layer-list and"
                " --num-layers-per-virtual-pipeline-stage, or convert it with tools/convert_ckpt.py"
            )
    shard = megatron.read_file(folder, _path(groups, megatron.MODEL_FILE))
    for key, stage in zip(megatron.model_keys(len(stages)), stages, strict=True):
        if key not in shard:
            raise UserError(f"{folder} has no {key}: was it saved with another virtual pipeline size?")
        fill(stage, shard[key], str(folder), wanted)


def load_optimizer(folder: Path, optimizer: Any, groups: Groups, distributed_optimizer: bool) -> None:
    """Restore the optimizer's state of this rank.

    Raises:
        UserError: the optimizer was split over another number of replicas, or not split; another model.
    """
    manifest = megatron.read_manifest(folder)
    if manifest is not None:
        replicas = manifest["layout"]["data"] * manifest["layout"].get("context", 1)
        same_split = replicas == groups.layout.replicas or not distributed_optimizer
        if manifest["distributed_optimizer"] != distributed_optimizer or not same_split:
            raise UserError(
                f"{folder}: its optimizer state was split over {replicas} replicas "
                f"({'with' if manifest['distributed_optimizer'] else 'without'} --use-distributed-optimizer); "
                "use the same layout (--ckpt-format torch_dist is not bound to it), or --no-load-optim"
            )
    name = optimizer_file(groups, distributed_optimizer)
    saved = megatron.read_file(folder, _path(groups, name))
    restore(optimizer, saved["optimizer"], folder)


def optimizer_file(groups: Groups, distributed_optimizer: bool) -> str:
    """Name of the file with this rank's optimizer state."""
    return f"optimizer_{groups.replica_rank if distributed_optimizer else 0:03d}.pt"


def _on_host(state: dict[str, Any]) -> dict[str, Any]:
    """Copies: a view would be saved with all of the buffer that it looks into, those of other ranks' parameters too."""
    return {k: v.detach().to("cpu", copy=True) if isinstance(v, torch.Tensor) else v for k, v in state.items()}


def optimizer_entries(optimizer: Any) -> list[dict[str, torch.Tensor]]:
    """For each parameter its moments, its step, and the main weight in fp32 (which bf16 weights have lost)."""
    return [{**one.optimizer.state[one.main], "main": one.main.detach()} for one in moved(optimizer)]


def restore(optimizer: Any, saved: list[dict[str, torch.Tensor]], folder: Path) -> None:
    """Give an optimizer what `optimizer_entries` told.

    Raises:
        UserError: they are of other parameters.
    """
    found = list(moved(optimizer))
    # Not only another model has others: under the distributed optimizer they are cut along Megatron's gradient buckets.
    if [one.main.shape for one in found] != [entry["main"].shape for entry in saved]:
        raise UserError(
            f"{folder}: its optimizer state is of {len(saved)} parameters, or parts of them, that are not the"
            f" {len(found)} of this run; give the flags it was saved with (--overlap-grad-reduce and --lora-* too),"
            " or --no-load-optim"
        )
    for one, entry in zip(found, saved, strict=True):
        with torch.no_grad():
            one.main.copy_(entry["main"])
        moments = {key: value.clone() for key, value in entry.items() if key != "main"}
        for key in MOMENTS:
            if key in moments:
                moments[key] = moments[key].to(one.main.device)
        one.optimizer.state[one.main] = moments
