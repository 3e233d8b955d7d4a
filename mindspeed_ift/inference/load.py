"""A Hugging Face folder or a checkpoint of any layout -> one model in this process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.convert import hugging_face_shard, hugging_face_tensors
from mindspeed_ift.checkpoint.huggingface import read_training
from mindspeed_ift.checkpoint.names import ExpertPart, stage_entries
from mindspeed_ift.checkpoint.transforms import to_shard
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout, padded_vocab_size
from mindspeed_ift.devices.device import current
from mindspeed_ift.model.build import ModelOptions, Qwen3Model, build_model
from mindspeed_ift.model.weights import fill
from mindspeed_ift.parallel import groups as process_groups
from mindspeed_ift.parallel.groups import Groups


@dataclass(frozen=True)
class Loaded:
    """A model ready to answer, and what its checkpoint says of itself.

    Attributes:
        model: this rank's stage, in evaluation mode, on the current device.
        groups: of the ranks that hold the others.
        facts: tokenizer, and of training prompt_type, its definition, certificate and enable_thinking where known.
    """

    model: Qwen3Model
    groups: Groups
    facts: dict[str, Any]


@dataclass(frozen=True)
class Part:
    """What one rank holds of a model; the words of `hugging_face_shard`."""

    layers: range
    first_stage: bool
    last_stage: bool
    tensor_size: int
    tensor_rank: int
    padded_vocab: int


def load(folder: Path, layout: Layout | None = None) -> Loaded:
    """Load a Hugging Face folder, an ``iter_`` folder, or the latest checkpoint of a ``--save`` folder.

    Args:
        folder: of any layout.
        layout: tensor and pipeline parallel sizes of the processes that answer together; None: this one alone.

    Raises:
        UserError: nothing of the kind is there, or it is damaged.
    """
    layout = layout or Layout()
    folder = Path(folder)
    folder = megatron.latest_folder(folder) or folder
    groups = process_groups.start(layout, current(), seed=0)
    if megatron.read_manifest(folder) is not None:
        architecture, facts, tensors = hugging_face_tensors(folder)
    elif (folder / "config.json").is_file():
        architecture = Architecture.from_hugging_face(folder)
        facts = {**read_training(folder), "tokenizer": str(folder)}
        tensors = None
    else:
        raise UserError(f"--load {folder} is neither a Hugging Face folder nor a checkpoint of this toolkit")
    _check_layout(architecture, layout)
    stages = layout.stage_layers(architecture.num_layers)
    part = Part(
        layers=stages[groups.pipeline_rank],
        first_stage=groups.pipeline_rank == 0,
        last_stage=groups.pipeline_rank == layout.pipeline - 1,
        tensor_size=layout.tensor,
        tensor_rank=groups.tensor_rank,
        padded_vocab=padded_vocab_size(architecture.vocab_size, 1, layout.tensor),
    )
    if tensors is None:
        experts = ExpertPart.of(layout, groups.tensor_rank, 0)
        weights = hugging_face_shard(folder, architecture, **asdict(part), experts=experts)
    else:
        weights = _part_of(tensors, architecture, part)
    dtype = next(iter(weights.values())).dtype
    if current().kind == "cpu":
        dtype = torch.float32  # bf16 is emulated there, and slower
    options = ModelOptions(padded_vocab=part.padded_vocab, dtype=dtype, fresh=False)
    model = build_model(architecture, options, groups)
    fill(model, weights, str(folder))
    return Loaded(model.eval(), groups, facts)


def _check_layout(architecture: Architecture, layout: Layout) -> None:
    heads = (architecture.num_attention_heads, architecture.num_query_groups)
    for count in (*heads, architecture.ffn_hidden_size, architecture.moe_ffn_hidden_size):
        if count % layout.tensor:
            raise UserError(
                f"--tensor-model-parallel-size {layout.tensor} does not divide {count} heads or columns; choose a divisor"
            )


def _part_of(tensors: Iterator[tuple[str, Tensor]], architecture: Architecture, part: Part) -> dict[str, Tensor]:
    """A rank's Megatron state dict from a stream of whole Hugging Face tensors, each let go of once it is used."""
    entries = list(stage_entries(architecture, part.layers, first_stage=part.first_stage, last_stage=part.last_stage))
    uses = Counter(name for _, names, _ in entries for name in names)
    wanting: dict[str, list[Any]] = {}
    for entry in entries:
        for each in entry[1]:
            wanting.setdefault(each, []).append(entry)
    kept: dict[str, Tensor] = {}
    state: dict[str, Tensor] = {}
    for arrived, tensor in tensors:
        if arrived not in uses:
            continue
        kept[arrived] = tensor
        for name, names, transform in wanting[arrived]:
            if all(each in kept for each in names):
                state[name] = to_shard(
                    transform,
                    [kept[each] for each in names],
                    architecture,
                    tensor_size=part.tensor_size,
                    tensor_rank=part.tensor_rank,
                    padded_vocab=part.padded_vocab,
                )
                uses.subtract(names)
        kept = {each: tensor for each, tensor in kept.items() if uses[each]}
    return state
