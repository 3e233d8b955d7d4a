"""One way to write Megatron checkpoints, in either format, from any source: one group of tensors in memory."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mindspeed_ift.checkpoint import index, megatron, sharded
from mindspeed_ift.checkpoint.arguments import arguments_of
from mindspeed_ift.checkpoint.checksums import described
from mindspeed_ift.checkpoint.names import Stage, experts_of, hugging_face_shapes, stage_entries, stages_of
from mindspeed_ift.checkpoint.sharded import Rectangle
from mindspeed_ift.checkpoint.source import Source
from mindspeed_ift.checkpoint.threads import run_all
from mindspeed_ift.checkpoint.torch_file import ReservedFile
from mindspeed_ift.checkpoint.transforms import Transform, parts_of_shard, shard_shape
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.layout import Layout

_ITERATION = 1
"""Of a checkpoint that no step has made: Megatron takes no 0 for one, and MindSpeed-LLM writes 1 too."""
_Shapes = dict[str, tuple[int, ...]]


class Target(NamedTuple):
    """What is written.

    Attributes:
        ckpt_format: ``torch`` or ``torch_dist``.
        architecture: of the model.
        layout: by which a ``torch`` checkpoint is cut.
        padded_vocab: rows of the embedding over all tensor ranks.
    """

    ckpt_format: str
    architecture: Architecture
    layout: Layout
    padded_vocab: int


def write_weights(
    directory: Path,
    source: Source,
    target: Target,
    facts: dict[str, Any],
    *,
    workers: int = 1,
    settled: Callable[[], None] = lambda: None,
) -> str:
    """A checkpoint that has weights and nothing else; it appears whole or not at all.

    Args:
        directory: gets the ``iter_`` folder.
        source: of the weights, which keep their dtypes.
        target: what is written.
        facts: what else the manifest says.
        workers: threads that read and write.
        settled: called before the checkpoint appears; it does not if that raises.

    Returns:
        The dtype of the weights.

    Raises:
        UserError: as the source.
        RunError: it cannot be written.
    """
    dtype = source.dtype("model.embed_tokens.weight")
    staging = megatron.begin_save(directory, _ITERATION)
    try:
        write = _write_rectangles if target.ckpt_format == index.FORMAT else _write_shards
        files = write(staging, source, target, workers)
        settled()
        manifest = {
            "format": target.ckpt_format,
            "weights_only": True,
            **megatron.describe_weights(target.architecture, target.layout, target.padded_vocab, dtype),
            "distributed_optimizer": False,
            "iteration": _ITERATION,
            "consumed_samples": 0,
            **facts,
        }
        megatron.commit(staging, directory, _ITERATION, manifest, files)
    except BaseException:
        megatron.abandon_save(staging)
        raise
    return manifest["dtype"]


class _Made(NamedTuple):
    """A tensor of a stage's state dict, or its part of some experts."""

    name: str
    parts: tuple[str, ...]
    transform: Transform
    expert: int


def _entries(target: Target, number: int) -> Iterator[_Made]:
    """All of a stage; those of experts once for each expert rank."""
    architecture, layout = target.architecture, target.layout
    stage = stages_of(layout.stage_layers(architecture.num_layers))[number]
    for expert in range(layout.expert):
        experts = experts_of(architecture, layout, expert)
        for name, parts, transform in stage_entries(architecture, stage, experts):
            if transform.of_experts or expert == 0:
                yield _Made(name, parts, transform, expert)


def _cuts(made: _Made, tensors: list[Tensor], target: Target) -> Iterator[tuple[tuple[int, int], list[Tensor]]]:
    """(tensor rank, expert rank) and the parts of what that rank holds of the tensor, for each that holds some of it."""
    layout, of_experts = target.layout, made.transform.of_experts
    size = layout.tensor_of_experts if of_experts else layout.tensor
    held: tuple[int, list[Tensor]] = (-1, [])
    for rank, expert in sorted(layout.shards()):
        if of_experts and expert != made.expert:
            continue
        if held[0] != rank % size:  # ranks that hold the same follow each other
            held = (rank % size, _parts(made, tensors, target, size, rank % size))
        yield (rank, expert), held[1]


def _parts(made: _Made, tensors: list[Tensor], target: Target, size: int, rank: int) -> list[Tensor]:
    return parts_of_shard(
        made.transform,
        tensors,
        target.architecture,
        tensor_size=size,
        tensor_rank=rank,
        padded_vocab=target.padded_vocab,
    )


def _write_shards(staging: Path, source: Source, target: Target, workers: int) -> megatron.Files:
    """A file for each tensor, pipeline and expert rank; those of a pipeline rank grow together."""
    layout, shapes = target.layout, hugging_face_shapes(target.architecture)
    arguments = arguments_of(target.architecture, layout, target.padded_vocab, _ITERATION)
    files: megatron.Files = {}
    keys = megatron.model_keys(layout.chunks(target.architecture.num_layers))
    for place in range(layout.pipeline):
        made = [
            (key, one) for chunk, key in enumerate(keys) for one in _entries(target, place + chunk * layout.pipeline)
        ]
        facts = {"args": arguments, "checkpoint_version": 3.0, "iteration": _ITERATION}
        states: dict[tuple[int, int], dict[str, Any]] = {
            ranks: {**facts, **{key: {} for key in keys}} for ranks in layout.shards()
        }
        for key, one in made:
            planned = [torch.empty(shapes[part], dtype=source.dtype(part), device="meta") for part in one.parts]
            for ranks, parts in _cuts(one, planned, target):
                shape = shard_shape(one.transform, parts)
                states[ranks][key][one.name] = parts[0].new_empty(shape)
        with contextlib.ExitStack() as opened:
            reserved = {}
            for (rank, expert), state in states.items():
                reserved[rank, expert] = ReservedFile(staging, megatron.shard_path(layout, rank, place, expert), state)
                opened.callback(reserved[rank, expert].close)
            run_all((partial(_fill, reserved, key, one, source, target, shapes) for key, one in made), workers)
            for told in run_all((one.finish for one in reserved.values()), len(reserved)):
                files |= told
    return files


def _fill(
    reserved: dict[tuple[int, int], ReservedFile],
    key: str,
    made: _Made,
    source: Source,
    target: Target,
    shapes: _Shapes,
) -> None:
    """Into the file of each rank its part; what was read for it is let go of on return."""
    tensors = [source.tensor(part, shapes[part]) for part in made.parts]
    for ranks, parts in _cuts(made, tensors, target):
        reserved[ranks].fill(key, made.name, parts)


def _write_rectangles(staging: Path, source: Source, target: Target, workers: int) -> megatron.Files:
    """Whole tensors, whatever the layout: a file for each layer, with what comes before the first and after the last."""
    shapes, layers = hugging_face_shapes(target.architecture), range(target.architecture.num_layers)
    jobs = (partial(_write_layer, staging, source, target, shapes, layer) for layer in layers)
    files: megatron.Files = {}
    stored: list[index.Stored] = []
    for written, told in run_all(jobs, workers):
        files |= written
        stored += told
    return files | index.write_index(staging, stored, _ITERATION)


def _write_layer(
    staging: Path, source: Source, target: Target, shapes: _Shapes, layer: int
) -> tuple[megatron.Files, list[index.Stored]]:
    architecture = target.architecture
    stage = Stage(range(layer, layer + 1), layer == 0, layer == architecture.num_layers - 1)
    made = [
        _Made(sharded.key_of(name, layer), parts, transform, 0)
        for name, parts, transform in stage_entries(architecture, stage)
        if not (architecture.tied and name == "output_layer.weight")  # a copy of the embedding
    ]
    relative = f"__0_{layer}.distcp"
    with megatron.told_failure(staging / relative):
        planned = (_planned(one, source, target, shapes) for one in made)
        file, stored = sharded.reserve_rectangles(staging, relative, planned)
        with contextlib.closing(file):
            for one in made:
                file.fill(one.name, _whole(one, source, target, shapes))
            checksum = file.finish()
    return {relative: described(staging / relative, checksum)}, stored


def _planned(made: _Made, source: Source, target: Target, shapes: _Shapes) -> Rectangle:
    dtype, transform = source.dtype(made.parts[0]), made.transform
    planned = [torch.empty(shapes[part], dtype=dtype, device="meta") for part in made.parts]
    shape = shard_shape(transform, _parts(made, planned, target, 1, 0))
    if transform.of_experts:  # in these files one expert after the other; in memory they lie like that
        experts, width = target.architecture.num_experts, target.architecture.moe_ffn_hidden_size
        hidden = target.architecture.hidden_size
        shape = (experts, hidden, 2, width) if transform.kind == "experts_in" else (experts, width, hidden)
    value = torch.empty(shape, dtype=dtype, device="meta")
    return Rectangle(made.name, shape, (0,) * len(shape), value, padded=transform.kind == "vocabulary")


def _whole(made: _Made, source: Source, target: Target, shapes: _Shapes) -> Iterable[Tensor]:
    """The parts of a tensor that is not split; those that only follow each other are not put together before."""
    if made.transform.kind not in ("copy", "gate_up", "vocabulary"):
        return _parts(made, [source.tensor(part, shapes[part]) for part in made.parts], target, 1, 0)
    pads = []
    if made.transform.kind == "vocabulary":
        rows, columns = shapes[made.parts[0]]
        pads.append(torch.zeros(target.padded_vocab - rows, columns, dtype=source.dtype(made.parts[0])))
    return itertools.chain(*(source.parts(part, shapes[part]) for part in made.parts), pads)
