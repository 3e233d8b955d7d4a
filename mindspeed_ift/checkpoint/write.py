"""One way to write Megatron checkpoints, in either format, from any source: one group of tensors in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mindspeed_ift.checkpoint import index, megatron, sharded
from mindspeed_ift.checkpoint.names import ExpertPart, hugging_face_shapes, stage_entries
from mindspeed_ift.checkpoint.sharded import Rectangle
from mindspeed_ift.checkpoint.source import Source
from mindspeed_ift.checkpoint.torch_file import ReservedFile
from mindspeed_ift.checkpoint.transforms import Transform, to_shard
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.layout import Layout


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


def write_weights(directory: Path, source: Source, target: Target, facts: dict[str, Any]) -> str:
    """A checkpoint of step 0 that has weights and nothing else; it appears whole or not at all.

    Args:
        directory: gets the ``iter_`` folder.
        source: of the weights, which keep their dtypes.
        target: what is written.
        facts: what else the manifest says.

    Returns:
        The dtype of the weights.

    Raises:
        UserError: as the source.
        RunError: it cannot be written.
    """
    architecture, layout = target.architecture, target.layout
    dtype = str(source.dtype("model.embed_tokens.weight")).removeprefix("torch.")
    staging = megatron.begin_save(directory, 0)
    try:
        write = _write_rectangles if target.ckpt_format == index.FORMAT else _write_shards
        files = write(staging, source, target)
        manifest = {
            "format": target.ckpt_format,
            "weights_only": True,
            "architecture": asdict(architecture),
            "layout": megatron.describe_layout(layout),
            "stage_layers": [[stage.start, stage.stop] for stage in layout.stage_layers(architecture.num_layers)],
            "padded_vocab_size": target.padded_vocab,
            "dtype": dtype,
            "distributed_optimizer": False,
            "iteration": 0,
            "consumed_samples": 0,
            **facts,
        }
        megatron.commit(staging, directory, 0, manifest, files)
    except BaseException:
        megatron.abandon_save(staging)
        raise
    return dtype


class _Made(NamedTuple):
    """A tensor of a stage's state dict, or its part of some experts."""

    name: str
    parts: tuple[str, ...]
    transform: Transform
    expert: int


def _entries(target: Target, number: int) -> Iterator[_Made]:
    """All of a stage; those of experts once for each expert rank."""
    architecture, layout = target.architecture, target.layout
    stages = layout.stage_layers(architecture.num_layers)
    for expert in range(layout.expert):
        for name, parts, transform in stage_entries(
            architecture,
            stages[number],
            first_stage=number == 0,
            last_stage=number == len(stages) - 1,
            experts=ExpertPart(layout.expert, expert).numbers(architecture.num_experts),
        ):
            if transform.of_experts or expert == 0:
                yield _Made(name, parts, transform, expert)


def _cuts(made: _Made, tensors: list[Tensor], target: Target) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """(tensor rank, expert rank) and what that rank holds of the tensor, for each that holds some of it."""
    layout, of_experts = target.layout, made.transform.of_experts
    size = layout.tensor_of_experts if of_experts else layout.tensor
    held: tuple[int, Tensor | None] = (-1, None)
    for rank, expert in sorted(layout.shards()):
        if of_experts and expert != made.expert:
            continue
        if held[0] != rank % size or held[1] is None:  # ranks that hold the same follow each other
            cut = to_shard(
                made.transform,
                tensors,
                target.architecture,
                tensor_size=size,
                tensor_rank=rank % size,
                padded_vocab=target.padded_vocab,
            )
            held = (rank % size, cut)
        yield (rank, expert), held[1]


def _write_shards(staging: Path, source: Source, target: Target) -> megatron.Files:
    """A file for each tensor, pipeline and expert rank; those of a pipeline rank grow together."""
    layout, shapes = target.layout, hugging_face_shapes(target.architecture)
    files: megatron.Files = {}
    chunks = layout.chunks(target.architecture.num_layers)
    keys = megatron.model_keys(chunks)
    for place in range(layout.pipeline):
        numbers = {key: place + chunk * layout.pipeline for chunk, key in enumerate(keys)}
        states: dict[tuple[int, int], dict[str, Any]] = {
            ranks: {"checkpoint_version": 3.0, "iteration": 0, **{key: {} for key in keys}} for ranks in layout.shards()
        }
        for key, number in numbers.items():
            for made in _entries(target, number):
                planned = [torch.empty(shapes[part], dtype=source.dtype(part), device="meta") for part in made.parts]
                for ranks, cut in _cuts(made, planned, target):
                    states[ranks][key][made.name] = cut
        reserved = {}
        for (rank, expert), state in states.items():
            number = megatron.expert_rank(layout, expert)
            path = megatron.shard_path(rank, place, layout.pipeline, expert_rank=number)
            reserved[rank, expert] = ReservedFile(staging, path, state)
        for key, number in numbers.items():
            for made in _entries(target, number):
                _fill(reserved, key, made, source, target)
        for one in reserved.values():
            files |= one.finish()
    return files


def _fill(reserved: dict[tuple[int, int], ReservedFile], key: str, made: _Made, source: Source, target: Target) -> None:
    """Into the file of each rank its part; what was read for it is let go of on return."""
    shapes = hugging_face_shapes(target.architecture)
    tensors = [source.tensor(part, shapes[part]) for part in made.parts]
    for ranks, cut in _cuts(made, tensors, target):
        reserved[ranks].fill(key, made.name, cut)


def _write_rectangles(staging: Path, source: Source, target: Target) -> megatron.Files:
    """Whole tensors, whatever the layout: a file for each layer, with what comes before the first and after the last."""
    architecture, shapes = target.architecture, hugging_face_shapes(target.architecture)
    files: megatron.Files = {}
    stored: list[index.Stored] = []
    for layer in range(architecture.num_layers):
        first, last = layer == 0, layer == architecture.num_layers - 1
        entries = stage_entries(architecture, range(layer, layer + 1), first_stage=first, last_stage=last)
        rectangles = (
            _whole(sharded.key_of(name, layer), parts, transform, source, target, shapes)
            for name, parts, transform in entries
            if not (architecture.tied and name == "output_layer.weight")  # a copy of the embedding
        )
        written, told = sharded.write_rectangles(staging, 0, rectangles, layer)
        files |= written
        stored += told
    return files | index.write_index(staging, stored, 0)


def _whole(
    key: str,
    parts: tuple[str, ...],
    transform: Transform,
    source: Source,
    target: Target,
    shapes: dict[str, tuple[int, ...]],
) -> Rectangle:
    value = to_shard(
        transform,
        [source.tensor(part, shapes[part]) for part in parts],
        target.architecture,
        tensor_size=1,
        tensor_rank=0,
        padded_vocab=target.padded_vocab,
    )
    if transform.of_experts:  # in these files one expert after the other; in memory they lie like that
        experts, width = target.architecture.num_experts, target.architecture.moe_ffn_hidden_size
        inside = (-1, 2, width) if transform.kind == "experts_in" else (width, -1)
        value = value.view(experts, *inside)
    return Rectangle(key, tuple(value.shape), (0,) * value.dim(), value, padded=transform.kind == "vocabulary")
