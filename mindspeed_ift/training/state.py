"""What an exact resume needs: saved and loaded, a file a rank, without a foreign pickle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.devices.device import Device
from mindspeed_ift.mcore import OptimizerParamScheduler
from mindspeed_ift.model.build import Qwen3Model
from mindspeed_ift.model.weights import fill
from mindspeed_ift.parallel.groups import Groups

_MODEL_FILE = "model_optim_rng.pt"


def save(
    directory: Path,
    iteration: int,
    *,
    model: Qwen3Model,
    optimizer: Any,
    schedule: OptimizerParamScheduler,
    groups: Groups,
    device: Device,
    distributed_optimizer: bool,
    facts: dict[str, Any],
) -> None:
    """Write ``directory/iter_NNNNNNN``; it appears whole or not at all.

    One replica writes the model shards; each rank whose optimizer state is its own writes that.

    Args:
        directory: the run's folder.
        iteration: steps done.
        model: this rank's stage, without the wrapper.
        optimizer: Megatron's optimizer.
        schedule: of the learning rate.
        groups: who writes what.
        device: whose random state is kept.
        distributed_optimizer: optimizer state is split over the replicas.
        facts: what else the manifest says (data, tokenizer, seed, consumed samples).
    """
    staging = (
        megatron.begin_save(directory, iteration) if groups.rank == 0 else megatron.staging_folder(directory, iteration)
    )
    groups.barrier()
    place = (staging, groups.tensor_rank, groups.pipeline_rank, groups.layout.pipeline)
    if groups.model_writer:
        weights = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
        state = {"checkpoint_version": 3.0, "iteration": iteration, "model": weights}
        megatron.write_shard(*place, state, _MODEL_FILE)
    if groups.model_writer or distributed_optimizer:
        state = {
            "optimizer": _optimizer_state(optimizer),
            "schedule": schedule.state_dict(),
            "random_state": device.random_state(),
        }
        megatron.write_shard(*place, state, _optimizer_file(groups, distributed_optimizer))
    groups.barrier()
    if groups.rank == 0:
        megatron.commit(
            staging, directory, iteration, _manifest(model, iteration, groups, distributed_optimizer) | facts
        )
    groups.barrier()


def _manifest(model: Qwen3Model, iteration: int, groups: Groups, distributed_optimizer: bool) -> dict[str, Any]:
    layout = groups.layout
    stages = layout.stage_layers(model.architecture.num_layers)
    return {
        "architecture": asdict(model.architecture),
        "layout": {key: getattr(layout, key) for key in ("tensor", "pipeline", "context", "data")},
        "stage_layers": [[stage.start, stage.stop] for stage in stages],
        "padded_vocab_size": model.options.padded_vocab,
        "dtype": str(model.options.dtype).removeprefix("torch."),
        "distributed_optimizer": distributed_optimizer,
        "iteration": iteration,
    }


def load_model(folder: Path, model: Qwen3Model, groups: Groups) -> None:
    """Fill this rank's stage from a checkpoint of the same tensor and pipeline layout.

    Raises:
        UserError: another layout or architecture, a missing or damaged file.
    """
    manifest = megatron.read_manifest(folder)
    if manifest is not None:
        mine = {"tensor": groups.layout.tensor, "pipeline": groups.layout.pipeline}
        saved = {key: manifest["layout"][key] for key in mine}
        if saved != mine:
            raise UserError(
                f"{folder} was saved with TP {saved['tensor']} PP {saved['pipeline']}, this run has TP {mine['tensor']} "
                f"PP {mine['pipeline']}; use the saved layout, or convert it with tools/convert_ckpt.py"
            )
        if manifest["architecture"] != asdict(model.architecture):
            raise UserError(f"{folder} holds another architecture than the flags describe; give the same architecture")
    shard = megatron.read_shard(folder, groups.tensor_rank, groups.pipeline_rank, groups.layout.pipeline, _MODEL_FILE)
    fill(model, shard["model"], str(folder))


def load_training(
    folder: Path,
    optimizer: Any,
    schedule: OptimizerParamScheduler,
    groups: Groups,
    device: Device,
    *,
    distributed_optimizer: bool,
    load_random: bool,
) -> None:
    """Restore optimizer, schedule and random state of this rank.

    Raises:
        UserError: the optimizer was split over another number of replicas, or not split.
    """
    manifest = megatron.read_manifest(folder)
    if manifest is not None:
        replicas = manifest["layout"]["data"] * manifest["layout"].get("context", 1)
        same_split = replicas == groups.layout.replicas or not distributed_optimizer
        if manifest["distributed_optimizer"] != distributed_optimizer or not same_split:
            raise UserError(
                f"{folder}: its optimizer state was split over {replicas} replicas "
                f"({'with' if manifest['distributed_optimizer'] else 'without'} --use-distributed-optimizer); "
                "use the same layout, or --no-load-optim"
            )
    name = _optimizer_file(groups, distributed_optimizer)
    saved = megatron.read_shard(folder, groups.tensor_rank, groups.pipeline_rank, groups.layout.pipeline, name)
    _restore_optimizer(optimizer, saved["optimizer"])
    schedule.num_steps = int(saved["schedule"]["num_steps"])
    schedule.step(increment=0)
    if load_random:
        device.set_random_state(saved["random_state"])


def _optimizer_file(groups: Groups, distributed_optimizer: bool) -> str:
    return f"optimizer_{groups.replica_rank if distributed_optimizer else 0:03d}.pt"


def _parameters(optimizer: Any) -> Iterator[tuple[Any, torch.Tensor]]:
    """(torch optimizer, parameter it updates) in an order that is the same in every run of one layout."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                yield part.optimizer, parameter


def _optimizer_state(optimizer: Any) -> list[dict[str, torch.Tensor]]:
    """For each parameter its moments, its step, and the main weight in fp32 (which bf16 weights have lost)."""
    return [{**inner.state[parameter], "main": parameter.detach()} for inner, parameter in _parameters(optimizer)]


def _restore_optimizer(optimizer: Any, saved: list[dict[str, torch.Tensor]]) -> None:
    parameters = list(_parameters(optimizer))
    if len(parameters) != len(saved):
        raise UserError(f"the checkpoint has optimizer state of {len(saved)} parameters, this run of {len(parameters)}")
    for (inner, parameter), entry in zip(parameters, saved, strict=True):
        with torch.no_grad():
            parameter.copy_(entry["main"])
        moments = {key: value.clone() for key, value in entry.items() if key != "main"}
        for key in ("exp_avg", "exp_avg_sq"):
            if key in moments:
                moments[key] = moments[key].to(parameter.device)
        inner.state[parameter] = moments
