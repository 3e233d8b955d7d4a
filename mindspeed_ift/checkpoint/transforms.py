"""Hugging Face tensors to one Megatron shard, and all shards back: each transform is exactly invertible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

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


_BLOCK = 1 << 18
"""Bytes of rows that are put together at a time."""


def parts_of_shard(
    transform: Transform,
    tensors: Sequence[Tensor],
    architecture: Architecture,
    *,
    tensor_size: int,
    tensor_rank: int,
    padded_vocab: int,
) -> list[Tensor]:
    """Whose elements, one tensor after another, are one rank's part of a Megatron tensor; views where possible.

    Args:
        transform: row of the name table.
        tensors: the Hugging Face tensors, whole.
        architecture: number of query groups.
        tensor_size: tensor parallel size (of experts: their own).
        tensor_rank: which part.
        padded_vocab: rows of the embedding over all ranks; those behind the vocabulary are zero.
    """

    def own(tensor: Tensor, dim: int) -> Tensor:
        return tensor.chunk(tensor_size, dim)[tensor_rank]

    if transform.kind == "gate_up":  # each rank holds its part of both, gate first
        return [own(tensor, 0) for tensor in tensors]
    if transform.kind == "experts_in":
        pairs = [tensors[first : first + 2] for first in range(0, len(tensors), 2)]
        return [torch.cat([own(half, 0) for half in pair]).T for pair in pairs]
    if transform.kind == "experts_out":
        return [own(tensor, 1).T for tensor in tensors]
    if transform.kind == "qkv":  # for every query group: its query heads, its key, its value
        grouped = [own(tensor.unflatten(0, (architecture.num_query_groups, -1)), 0) for tensor in tensors]
        return [part for group in zip(*grouped, strict=True) for part in group]
    if transform.kind == "vocabulary":
        return _words(tensors[0], padded_vocab // tensor_size, tensor_rank)
    return [tensors[0] if transform.dim is None else own(tensors[0], transform.dim)]


def _words(embedding: Tensor, rows: int, rank: int) -> list[Tensor]:
    part = embedding[rank * rows : (rank + 1) * rows]
    pads = rows - part.shape[0]
    return [part, part.new_zeros(pads, part.shape[1])] if pads else [part]


def shard_shape(transform: Transform, parts: Sequence[Tensor]) -> tuple[int, ...]:
    """Of the Megatron tensor that `parts_of_shard` gave."""
    if transform.kind == "experts_in":  # [hidden, experts * (gate + up)], in memory [experts, hidden, gate + up]
        return parts[0].shape[0], sum(part.shape[1] for part in parts)
    return sum(part.shape[0] for part in parts), *parts[0].shape[1:]


def to_shard(transform: Transform, tensors: Sequence[Tensor], architecture: Architecture, **place: int) -> Tensor:
    """One rank's part of a Megatron tensor, in memory of its own; arguments as of `parts_of_shard`."""
    parts = parts_of_shard(transform, tensors, architecture, **place)
    if len(parts) == 1:
        return parts[0].clone(memory_format=torch.contiguous_format).view(shard_shape(transform, parts))
    return torch.cat(parts).view(shard_shape(transform, parts))


class Pieces(NamedTuple):
    """A tensor that is not yet in one piece.

    Attributes:
        parts: tensors that make it.
        dim: along which they are joined.
    """

    parts: Sequence[Tensor]
    dim: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        shape = list(self.parts[0].shape)
        shape[self.dim] = sum(part.shape[self.dim] for part in self.parts)
        return tuple(shape)

    def joined(self) -> Tensor:
        """The tensor; the part itself if there is but one."""
        return self.parts[0] if len(self.parts) == 1 else torch.cat(list(self.parts), self.dim)

    def rows(self) -> Iterator[Tensor]:
        """Tensors that make it one below another: parts, or, where parts stand side by side, some rows of all at a time."""
        if self.dim == 0 or len(self.parts) == 1:
            yield from self.parts
            return
        count = max(1, _BLOCK // (len(self.parts) * self.parts[0][0].nbytes))
        for blocks in zip(*(part.split(count) for part in self.parts), strict=True):
            yield torch.cat(blocks, self.dim)


def from_shards(transform: Transform, shards: Sequence[Tensor], architecture: Architecture) -> list[Pieces]:
    """The Hugging Face tensors that the shards of all tensor ranks make, in the order of the table; views where possible."""
    if transform.kind == "gate_up":
        return [Pieces(halves) for halves in zip(*(shard.chunk(2, 0) for shard in shards), strict=True)]
    if transform.of_experts:
        return _experts_from_shards(transform, shards, architecture)
    if transform.kind == "vocabulary":
        first_rows = range(0, architecture.vocab_size, shards[0].shape[0])  # shards of nothing but padding have none
        return [Pieces([shard[: architecture.vocab_size - first] for first, shard in zip(first_rows, shards)])]
    if transform.dim is None:
        return [Pieces(shards[:1])]
    whole = Pieces(shards, transform.dim)
    if transform.kind != "qkv":
        return [whole]
    heads = architecture.num_attention_heads // architecture.num_query_groups
    size = architecture.kv_channels
    grouped = whole.joined().unflatten(0, (architecture.num_query_groups, -1))
    return [Pieces([part.flatten(0, 1).contiguous()]) for part in grouped.split([heads * size, size, size], dim=1)]


def _experts_from_shards(transform: Transform, shards: Sequence[Tensor], architecture: Architecture) -> list[Pieces]:
    """Of each expert gate and up, or down, transposed."""
    width = architecture.moe_ffn_hidden_size // len(shards)
    inward = transform.kind == "experts_in"
    if shards[0].dim() > 2:
        # Whole, as a checkpoint of any layout has them: [experts, hidden, 2, inner] and [experts, inner, hidden].
        hidden = shards[0].shape[1 if inward else 2]
        shards = [one.reshape((hidden, -1) if inward else (-1, hidden)) for one in shards]
    if not inward:
        stacks = [shard.unflatten(0, (-1, width)).mT for shard in shards]
        return [Pieces(parts, 1) for parts in zip(*stacks, strict=True)]
    halves = [shard.reshape(-1, shard.shape[0], 2 * width).mT.chunk(2, 1) for shard in shards]
    experts = range(len(halves[0][0]))
    return [Pieces([one[part][expert] for one in halves]) for expert in experts for part in range(2)]
