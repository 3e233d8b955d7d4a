"""What an exact resume needs, in either format: saved and loaded, without a foreign pickle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mindspeed_ift.checkpoint import index, megatron, sharded
from mindspeed_ift.checkpoint.adapters import describe_adapters
from mindspeed_ift.checkpoint.disk import free_bytes, in_gigabytes, require_space
from mindspeed_ift.checkpoint.sharded import Reader, Rectangle
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.tuning import RunFlags
from mindspeed_ift.devices.device import Device
from mindspeed_ift.mcore import OptimizerParamScheduler, random_streams
from mindspeed_ift.model.build import Qwen3Model
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.training import loss_scale, rank_files, sharding
from mindspeed_ift.training.saving import Saver, Written

_RANDOM = "random_states.pt"


@dataclass(frozen=True)
class Trained:
    """What a checkpoint is made of, and is loaded into.

    Attributes:
        stages: this rank's, without the wrapper.
        optimizer: Megatron's.
        schedule: of the learning rate.
        groups: who writes what.
        device: whose random state is kept.
        distributed_optimizer: optimizer state is split over the replicas.
    """

    stages: list[Qwen3Model]
    optimizer: Any
    schedule: OptimizerParamScheduler
    groups: Groups
    device: Device
    distributed_optimizer: bool


def save(
    saver: Saver,
    iteration: int,
    trained: Trained,
    ckpt_format: str,
    facts: dict[str, Any],
    after: Callable[[], None] = lambda: None,
) -> None:
    """Write a checkpoint; it appears whole or not at all.

    Each rank writes what no other has; of copies the first.

    Args:
        saver: of the run's folder.
        iteration: steps done.
        trained: model, optimizer and the rest.
        ckpt_format: ``torch_dist`` or ``torch``.
        facts: what else the manifest says (data, tokenizer, seed, consumed samples).
        after: called on every rank once the checkpoint is there.

    Raises:
        RunError: on every rank, if one has no room or cannot write; nothing is left behind.
    """
    groups = trained.groups
    saver.begin(iteration, bytes_of_save(trained, ckpt_format))
    own = {"device": trained.device.random_state(), "tracker": random_streams().get_states()}
    told = groups.gather((own, sharding.steps_of(trained.optimizer)))
    manifest = {
        "format": ckpt_format,
        **_manifest(trained, iteration),
        "schedule_steps": trained.schedule.num_steps,
        "optimizer_steps": max(steps for _, steps in told),
        "loss_scale": loss_scale.state_of(trained.optimizer),
        **facts,
    }
    if ckpt_format == index.FORMAT:
        write = _write_rectangles(trained, on_host_first=saver.background)
    else:
        write = _write_shards(trained, iteration)

    def job(staging: Path) -> Written:
        written = write(staging)
        if groups.rank == 0:
            states = [state for state, _ in told]
            written.files.update(megatron.save_file(staging, _RANDOM, states))
        return written

    saver.start(job, manifest, after)


def _write_rectangles(trained: Trained, on_host_first: bool) -> Callable[[Path], Written]:
    kinds = [map(_on_host, one) for one in _rectangles(trained)]  # as they are written, or all of them now
    content: list[Iterable[Rectangle]] = [list(one) for one in kinds] if on_host_first else [*kinds]

    def write(staging: Path) -> Written:
        written = Written({}, [])
        for number, rectangles in enumerate(content):
            files, stored = sharded.write_rectangles(staging, trained.groups.rank, rectangles, number)
            written.files.update(files)
            written.stored.extend(stored)
        return written

    return write


def _write_shards(trained: Trained, iteration: int) -> Callable[[Path], Written]:
    content = rank_files.shards(
        iteration, trained.stages, trained.optimizer, trained.groups, trained.distributed_optimizer, _is_saved
    )

    def write(staging: Path) -> Written:
        written = Written({}, [])
        for path, state in content.items():
            written.files.update(megatron.save_file(staging, path, state))
        return written

    return write


def _rectangles(trained: Trained, planned: bool = False) -> tuple[Iterator[Rectangle], Iterator[Rectangle]]:
    """Weights, which are read without the rest, and the optimizer's state."""
    return (
        sharding.weights(trained.stages, trained.groups, _is_saved, owned=True),
        sharding.optimizer_state(trained.stages, trained.optimizer, trained.groups, planned=planned),
    )


def _on_host(rectangle: Rectangle) -> Rectangle:
    """A copy: a view would be saved with all of the buffer that it looks into."""
    return replace(rectangle, data=rectangle.data.detach().to("cpu", copy=True))


def bytes_of_save(trained: Trained, ckpt_format: str) -> int:
    """What a checkpoint takes on the disk, over all ranks (their own part of it is asked of each)."""
    groups, own = trained.groups, 0
    if ckpt_format == index.FORMAT:
        own = sum(one.data.nbytes for kind in _rectangles(trained, planned=True) for one in kind)
        return sum(groups.gather(own))
    if groups.model_writer:
        for stage in trained.stages:
            own += sum(value.nbytes for name, value in stage.named_parameters() if _is_saved(stage, name))
    if groups.model_writer or trained.distributed_optimizer:
        # In fp32: the main weight and two moments, which are there only after the first step.
        own += sum(12 * one.main.numel() for one in sharding.moved(trained.optimizer))
    return sum(groups.gather(own))


def check_space(run: RunFlags, total: int, done: int, trained: Trained) -> str | None:
    """Refuse a run whose first checkpoint would find no room, before hours are spent on it.

    Args:
        run: where checkpoints go, and when.
        total: steps.
        done: of these.
        trained: what they are made of.

    Returns:
        A notice where all of them will not, or None.

    Raises:
        RunError: on every rank.
    """
    if run.save is None or done >= total:
        return None
    each = bytes_of_save(trained, run.ckpt_format)
    free = trained.groups.gather(free_bytes(run.save))[0]
    require_space(run.save, each, "--save", free)
    count = -(-total // (run.save_interval or total)) - done // (run.save_interval or total)
    if run.keep_last is not None:
        count = min(count, run.keep_last + 1)  # the next is whole before the oldest is deleted
    if count * each <= free:
        return None
    needed = f"{count} checkpoints of {in_gigabytes(each)}"
    return f"notice: {needed} will not fit into the {in_gigabytes(free)} that are free at --save {run.save}"


def _is_saved(model: Qwen3Model, name: str) -> bool:
    lora = model.options.lora
    return lora is None or not lora.lora_ckpt_filter or lora.is_trained(name, model.architecture.tied)


def _manifest(trained: Trained, iteration: int) -> dict[str, Any]:
    model, layout = trained.stages[0], trained.groups.layout
    return {
        **megatron.describe_weights(model.architecture, layout, model.options.padded_vocab, model.options.dtype),
        "distributed_optimizer": trained.distributed_optimizer,
        "lora": describe_adapters(model.options.lora),
        "iteration": iteration,
    }


def load_model(
    folder: Path, stages: list[Qwen3Model], groups: Groups, wanted: Callable[[str], bool] = lambda name: True
) -> None:
    """Fill the ``wanted`` parameters of this rank's stages; only the ``torch`` format asks for the layout it was saved in.

    Raises:
        UserError: another architecture, or layout, a missing or damaged file.
    """
    manifest = megatron.read_manifest(folder)
    if manifest is not None and Architecture(**manifest["architecture"]) != stages[0].architecture:
        raise UserError(f"{folder} holds another architecture than the flags describe; give the same architecture")
    if format_of(folder) != index.FORMAT:
        rank_files.load_weights(folder, stages, groups, wanted)
        return
    reason = changed_file(folder, groups, distributed_optimizer=False)
    if reason is not None:
        raise UserError(f"{reason}; take an older checkpoint")
    reader = Reader(folder)
    for rectangle in sharding.weights(stages, groups, lambda _, name: wanted(name), owned=False):
        reader.fill(rectangle)


def load_training(folder: Path, trained: Trained, *, load_random: bool) -> None:
    """Restore optimizer, schedule and random state of this rank.

    Random states are those of the ranks of a layout; in another one the generators stay as they were started.

    Raises:
        UserError: what is there does not fit, or is damaged.
    """
    manifest = megatron.read_manifest(folder) or {}
    if format_of(folder) == index.FORMAT:
        steps = int(manifest["optimizer_steps"])
        sharding.fill_optimizer(trained.stages, trained.optimizer, trained.groups, Reader(folder), steps)
    else:
        rank_files.load_optimizer(folder, trained.optimizer, trained.groups, trained.distributed_optimizer)
    trained.schedule.num_steps = int(manifest["schedule_steps"])
    trained.schedule.step(increment=0)
    loss_scale.restore(trained.optimizer, manifest.get("loss_scale"))
    if load_random and manifest["layout"] == megatron.describe_layout(trained.groups.layout):
        own = megatron.read_file(folder, _RANDOM)[trained.groups.rank]
        trained.device.set_random_state(own["device"])
        random_streams().set_states(own["tracker"])


def format_of(folder: Path) -> str:
    """``torch_dist`` or ``torch`` (of others, too)."""
    return (megatron.read_manifest(folder) or {}).get("format", "torch")


def changed_file(folder: Path, groups: Groups, distributed_optimizer: bool) -> str | None:
    """The first file of a checkpoint whose checksum is not what was written, of those that any rank reads; None: none."""
    if format_of(folder) == index.FORMAT:  # whoever reads what: each looks at its share
        names = sorted((megatron.read_manifest(folder) or {}).get("files", {}))[groups.rank :: groups.layout.world]
    else:
        names = rank_files.files_read(groups, distributed_optimizer)
    own = megatron.changed(folder, names)
    return next((one for one in groups.gather(own) if one is not None), None)
