"""What an exact resume needs: saved and loaded, a file a rank, without a foreign pickle."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.adapters import describe_adapters
from mindspeed_ift.checkpoint.disk import free_bytes, require_space
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import RunError, UserError
from mindspeed_ift.devices.device import Device
from mindspeed_ift.mcore import OptimizerParamScheduler, tensor_parallel
from mindspeed_ift.model.build import Qwen3Model
from mindspeed_ift.model.weights import fill
from mindspeed_ift.parallel.groups import Groups


def save(
    directory: Path,
    iteration: int,
    *,
    stages: list[Qwen3Model],
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
        stages: this rank's, without the wrapper.
        optimizer: Megatron's optimizer.
        schedule: of the learning rate.
        groups: who writes what.
        device: whose random state is kept.
        distributed_optimizer: optimizer state is split over the replicas.
        facts: what else the manifest says (data, tokenizer, seed, consumed samples).

    Raises:
        RunError: on every rank, if one has no room or cannot write; nothing is left behind.
    """
    needed = bytes_of_save(stages, optimizer, groups, distributed_optimizer)
    require_space(directory, needed, "--save", free=groups.gather(free_bytes(directory))[0])
    staging = megatron.staging_folder(directory, iteration)
    if groups.rank == 0:
        megatron.begin_save(directory, iteration)
    groups.barrier()
    failure, files = None, {}
    try:
        files = _write_files(staging, iteration, stages, optimizer, schedule, groups, device, distributed_optimizer)
    except RunError as error:
        failure = str(error)
    # All have written, or all stop: a peer that waits for one that failed would wait for the time-out.
    told = groups.gather((failure, files))
    failures = [one for one, _ in told if one]
    if failures:
        if groups.rank == 0:
            megatron.abandon_save(staging)
        raise RunError(failures[0])
    if groups.rank == 0:
        manifest = _manifest(stages[0], iteration, groups, distributed_optimizer) | facts
        megatron.commit(staging, directory, iteration, manifest, dict(ChainMap(*(one for _, one in told))))
    groups.barrier()


def _write_files(
    staging: Path,
    iteration: int,
    stages: list[Qwen3Model],
    optimizer: Any,
    schedule: OptimizerParamScheduler,
    groups: Groups,
    device: Device,
    distributed_optimizer: bool,
) -> megatron.Files:
    """What this rank has to keep."""
    place = (staging, groups.tensor_rank, groups.pipeline_rank, groups.layout.pipeline)
    expert = megatron.expert_rank(groups.layout, groups.expert_rank)
    files: megatron.Files = {}
    if groups.model_writer:
        state: dict[str, Any] = {"checkpoint_version": 3.0, "iteration": iteration}
        for key, stage in zip(megatron.model_keys(len(stages)), stages, strict=True):
            weights = {name: value for name, value in stage.state_dict().items() if _is_saved(stage, name, value)}
            state[key] = _on_host(weights)
        files |= megatron.write_shard(*place, state, megatron.MODEL_FILE, expert)
    if groups.model_writer or distributed_optimizer:
        state = {
            "optimizer": [_on_host(one) for one in _optimizer_state(optimizer)],
            "schedule": schedule.state_dict(),
            "random_state": device.random_state(),
            # Of what tensor ranks draw apart: dropout of inputs that are split among them.
            "random_tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
        }
        files |= megatron.write_shard(*place, state, _optimizer_file(groups, distributed_optimizer), expert)
    return files


def bytes_of_save(stages: list[Qwen3Model], optimizer: Any, groups: Groups, distributed_optimizer: bool) -> int:
    """What a checkpoint takes on the disk, over all ranks (their own part of it is asked of each)."""
    own = 0
    if groups.model_writer:
        for stage in stages:
            own += sum(value.nbytes for name, value in stage.named_parameters() if _is_saved(stage, name, value))
    if groups.model_writer or distributed_optimizer:
        # In fp32: the main weight and two moments, which are there only after the first step.
        own += sum(12 * parameter.numel() for _, parameter in _parameters(optimizer))
    return sum(groups.gather(own))


def _is_saved(model: Qwen3Model, name: str, value: Any) -> bool:
    lora = model.options.lora
    wanted = lora is None or not lora.lora_ckpt_filter or lora.is_trained(name, model.architecture.tied)
    return wanted and isinstance(value, torch.Tensor)


def _manifest(model: Qwen3Model, iteration: int, groups: Groups, distributed_optimizer: bool) -> dict[str, Any]:
    layout = groups.layout
    return {
        "architecture": asdict(model.architecture),
        "layout": megatron.describe_layout(layout),
        "stage_layers": _ranges(layout.stage_layers(model.architecture.num_layers)),
        "padded_vocab_size": model.options.padded_vocab,
        "dtype": str(model.options.dtype).removeprefix("torch."),
        "distributed_optimizer": distributed_optimizer,
        "lora": describe_adapters(model.options.lora),
        "iteration": iteration,
    }


def load_model(
    folder: Path, stages: list[Qwen3Model], groups: Groups, wanted: Callable[[str], bool] = lambda name: True
) -> None:
    """Fill the ``wanted`` parameters of this rank's stages from a checkpoint of the same tensor, pipeline and expert layout.

    Raises:
        UserError: another layout or architecture, a missing or damaged file.
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
                f"{folder} was saved with {saved}, this run has {mine}; use the saved layout, or convert it with"
                " tools/convert_ckpt.py"
            )
        if Architecture(**manifest["architecture"]) != architecture:
            raise UserError(f"{folder} holds another architecture than the flags describe; give the same architecture")
        if manifest["stage_layers"] != _ranges(groups.layout.stage_layers(architecture.num_layers)):
            raise UserError(
                f"{folder} was saved with other layers on its pipeline devices; give the same --num-layer-list and"
                " --num-layers-per-virtual-pipeline-stage, or convert it with tools/convert_ckpt.py"
            )
    shard = megatron.read_shard(*_place(folder, groups))
    for key, stage in zip(megatron.model_keys(len(stages)), stages, strict=True):
        if key not in shard:
            raise UserError(f"{folder} has no {key}: was it saved with another virtual pipeline size?")
        fill(stage, shard[key], str(folder), wanted)


def _ranges(stages: list[range]) -> list[list[int]]:
    return [[stage.start, stage.stop] for stage in stages]


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
    saved = megatron.read_shard(*_place(folder, groups, name))
    _restore_optimizer(optimizer, saved["optimizer"], folder)
    schedule.num_steps = int(saved["schedule"]["num_steps"])
    schedule.step(increment=0)
    if load_random:
        device.set_random_state(saved["random_state"])
        tensor_parallel.get_cuda_rng_tracker().set_states(saved["random_tracker"])


def changed_file(folder: Path, groups: Groups, distributed_optimizer: bool) -> str | None:
    """The first file of a checkpoint whose checksum is not what was written, of those that any rank reads; None: none."""
    names = (megatron.MODEL_FILE, _optimizer_file(groups, distributed_optimizer))
    own = megatron.changed(folder, [megatron.shard_path(*_place(folder, groups, name)[1:]) for name in names])
    return next((one for one in groups.gather(own) if one is not None), None)


def _place(folder: Path, groups: Groups, name: str = megatron.MODEL_FILE) -> tuple[Any, ...]:
    """Where this rank's files of that name lie, as `megatron.read_shard` wants it."""
    expert = megatron.expert_rank(groups.layout, groups.expert_rank)
    return folder, groups.tensor_rank, groups.pipeline_rank, groups.layout.pipeline, name, expert


def _optimizer_file(groups: Groups, distributed_optimizer: bool) -> str:
    return f"optimizer_{groups.replica_rank if distributed_optimizer else 0:03d}.pt"


def _parameters(optimizer: Any) -> Iterator[tuple[Any, torch.Tensor]]:
    """(torch optimizer, parameter it updates) in an order that is the same in every run of one layout."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                yield part.optimizer, parameter


def _on_host(state: dict[str, Any]) -> dict[str, Any]:
    """Copies: a view would be saved with all of the buffer that it looks into, those of other ranks' parameters too."""
    return {k: v.detach().to("cpu", copy=True) if isinstance(v, torch.Tensor) else v for k, v in state.items()}


def _optimizer_state(optimizer: Any) -> list[dict[str, torch.Tensor]]:
    """For each parameter its moments, its step, and the main weight in fp32 (which bf16 weights have lost)."""
    return [{**inner.state[parameter], "main": parameter.detach()} for inner, parameter in _parameters(optimizer)]


def _restore_optimizer(optimizer: Any, saved: list[dict[str, torch.Tensor]], folder: Path) -> None:
    parameters = list(_parameters(optimizer))
    # Not only another model has others: under the distributed optimizer they are cut along Megatron's gradient buckets.
    if [parameter.shape for _, parameter in parameters] != [entry["main"].shape for entry in saved]:
        raise UserError(
            f"{folder}: its optimizer state is of {len(saved)} parameters, or parts of them, that are not the"
            f" {len(parameters)} of this run; give the flags it was saved with (--overlap-grad-reduce and --lora-* too),"
            " or --no-load-optim"
        )
    for (inner, parameter), entry in zip(parameters, saved, strict=True):
        with torch.no_grad():
            parameter.copy_(entry["main"])
        moments = {key: value.clone() for key, value in entry.items() if key != "main"}
        for key in ("exp_avg", "exp_avg_sq"):
            if key in moments:
                moments[key] = moments[key].to(parameter.device)
        inner.state[parameter] = moments
