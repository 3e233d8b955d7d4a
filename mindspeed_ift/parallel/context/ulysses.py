"""Ulysses: ranks that hold all heads of some positions exchange them for some heads of all positions, and back.

Source: Jacobs et al. 2023 (DeepSpeed-Ulysses).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Shapes: S positions of a rank, B rows, N query heads, G key/value heads, D head size, U ranks.


def ulysses_attention(
    query_SBND: Tensor,
    key_SBGD: Tensor,
    value_SBGD: Tensor,
    boundaries: Tensor | None,
    *,
    group: dist.ProcessGroup,
    inner: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
) -> Tensor:
    """Attention of all positions of the group, each rank for its share of the heads.

    Args:
        query_SBND: ``[S, B, N, D]``; the group's size divides ``N``.
        key_SBGD: ``[S, B, G, D]``; too few heads are repeated before the exchange, as often as it takes.
        value_SBGD: ``[S, B, G, D]``.
        boundaries: handed on.
        group: the ranks of the exchange; rank ``i`` holds the ``i``-th part of the positions.
        inner: attention over ``[U * S, B, heads / U, D]`` with the same boundaries.

    Returns:
        ``[S, B, N, D]``.
    """
    ranks, key_heads = group.size(), key_SBGD.shape[2]
    repeats = math.lcm(key_heads, ranks) // key_heads
    if repeats > 1:
        key_SBGD, value_SBGD = (tensor.repeat_interleave(repeats, 2) for tensor in (key_SBGD, value_SBGD))
    # One message a peer: its query heads, its key heads, its value heads.
    parts = [tensor.unflatten(2, (ranks, -1)) for tensor in (query_SBND, key_SBGD, value_SBGD)]
    heads = [part.shape[3] for part in parts]
    received = _Exchange.apply(torch.cat(parts, 3).movedim(2, 0), group)  # [U, S, B, heads, D], of the U parts
    out = inner(*received.flatten(0, 1).split(heads, 2), boundaries)
    back = _Exchange.apply(out.unflatten(0, (ranks, -1)), group)  # [U, S, B, N / U, D], of the U shares of heads
    return back.movedim(0, 2).flatten(2, 3)


class _Exchange(torch.autograd.Function):
    """``[U, ...]``: the ``i``-th part goes to rank ``i``, and what came from rank ``i`` stands there. Its own backward."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        parts = parts.contiguous()
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Exchange.apply(grad, ctx.group), None
