"""Hugging Face tensors to one Megatron shard, and all shards back: each transform is exactly invertible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mindspeed_ift.config.architecture import Architecture


@dataclass(frozen=True)
class Transform:
    """How tensors are fused, and along which dimension the result is split over the tensor ranks.

    Attributes:
        kind: what is fused.
        dim: sharded dimension, or None for a tensor that every rank holds whole.
    """

    kind: Literal["copy", "qkv", "gate_up", "vocabulary", "experts_in", "experts_out"]
    dim: int | None

    @property
    def of_experts(self) -> bool:
        """Whether the tensor is made of some experts, and its ranks are the expert tensor ranks."""
        return self.kind in ("experts_in", "experts_out")


COPY = Transform("copy", None)
QKV = Transform("qkv", 0)
GATE_UP = Transform("gate_up", 0)
VOCABULARY = Transform("vocabulary", 0)
# Of each expert: its gate and up, transposed, gate first; and its down, transposed. One expert after another.
EXPERTS_IN = Transform("experts_in", 1)
EXPERTS_OUT = Transform("experts_out", 0)


def to_shard(
    transform: Transform,
    tensors: Sequence[Tensor],
    architecture: Architecture,
    *,
    tensor_size: int,
    tensor_rank: int,
    padded_vocab: int,
) -> Tensor:
    """One rank's part of a Megatron tensor, in memory of its own.

    Args:
        transform: row of the name table.
        tensors: the Hugging Face tensors, whole.
        architecture: number of query groups.
        tensor_size: tensor parallel size (of experts: their own).
        tensor_rank: which part.
        padded_vocab: rows of the embedding over all ranks; those behind the vocabulary are zero.
    """
    if transform.kind == "gate_up":  # each rank holds its part of both, gate first
        return torch.cat([tensor.chunk(tensor_size, 0)[tensor_rank] for tensor in tensors])
    if transform.kind == "experts_in":  # [hidden, experts * (gate + up)], in memory [experts, hidden, gate + up]
        halves = [tensor.chunk(tensor_size, 0)[tensor_rank] for tensor in tensors]
        pairs = [torch.cat(halves[first : first + 2]).T for first in range(0, len(halves), 2)]
        return torch.stack(pairs).view(pairs[0].shape[0], -1)
    if transform.kind == "experts_out":  # [experts * inner, hidden]
        return torch.cat([tensor.chunk(tensor_size, 1)[tensor_rank].T for tensor in tensors])
    whole = tensors[0]
    if transform.kind == "qkv":  # for every query group: its query heads, its key, its value
        grouped = [tensor.unflatten(0, (architecture.num_query_groups, -1)) for tensor in tensors]
        whole = torch.cat(grouped, dim=1).flatten(0, 1)
    elif transform.kind == "vocabulary":
        rows = padded_vocab // tensor_size
        part = whole[tensor_rank * rows : (tensor_rank + 1) * rows]
        return torch.cat([part, whole.new_zeros(rows - part.shape[0], whole.shape[1])])
    return whole.clone() if transform.dim is None else whole.chunk(tensor_size, transform.dim)[tensor_rank].clone()


def from_shards(transform: Transform, shards: Sequence[Tensor], architecture: Architecture) -> list[Tensor]:
    """The Hugging Face tensors that the shards of all tensor ranks make, in the order of the table; views where possible."""
    if transform.kind == "gate_up":
        halves = [shard.chunk(2, 0) for shard in shards]
        return [torch.cat([half[part] for half in halves]) for part in range(2)]
    if transform.of_experts:
        return _experts_from_shards(transform, shards, architecture.moe_ffn_hidden_size // len(shards))
    alone = transform.dim is None or len(shards) == 1
    whole = shards[0] if alone else torch.cat(list(shards), transform.dim)
    if transform.kind == "vocabulary":
        return [whole[: architecture.vocab_size]]
    if transform.kind == "qkv":
        heads = architecture.num_attention_heads // architecture.num_query_groups
        size = architecture.kv_channels
        grouped = whole.unflatten(0, (architecture.num_query_groups, -1))
        parts = grouped.split([heads * size, size, size], dim=1)
        return [part.flatten(0, 1).contiguous() for part in parts]
    return [whole]


def _experts_from_shards(transform: Transform, shards: Sequence[Tensor], width: int) -> list[Tensor]:
    """Of each expert gate and up, or down; ``width`` is that of its part in a shard."""
    if (
        shards[0].dim() > 2
    ):  # whole, as a checkpoint of any layout has them: [experts, hidden, 2, inner] and [.., hidden]
        hidden = shards[0].shape[1 if transform.kind == "experts_in" else 2]
        shards = [one.reshape((hidden, -1) if transform.kind == "experts_in" else (-1, hidden)) for one in shards]
    if transform.kind == "experts_out":
        stacks = [shard.unflatten(0, (-1, width)).mT for shard in shards]
        return [torch.cat(parts, 1) for parts in zip(*stacks, strict=True)]
    halves = [shard.reshape(-1, shard.shape[0], 2 * width).mT.chunk(2, 1) for shard in shards]
    experts = range(len(halves[0][0]))
    return [torch.cat([one[part][expert] for one in halves]) for expert in experts for part in range(2)]
