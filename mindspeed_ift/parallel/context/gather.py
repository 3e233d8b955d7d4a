"""Key gathering: every rank gets the keys and values of the whole row and computes for its own queries.

Only the slice of keys that a chunk's segments need enters the attention. The backward pass gathers again instead of
keeping the whole row, and sums the gradients of keys and values over the ranks in fp32.

Memory: ``O(S / CP)`` is kept for the backward pass; while computing, the keys and values of the whole row (backward: their
gradients in fp32 too).

Source: Llama 3 (Dubey et al. 2024), section 3.3.2; zigzag chunks as for the ring.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed_ift.devices.kernels.table import Kernels
from mindspeed_ift.parallel.context.plan import GatherPlan, ends_of_rows, gather_plan

# Shapes: S positions of a rank, B rows, R ranks, N query heads, G key/value heads, D head size.


def gathered_attention(
    query_SBND: Tensor,
    key_SBGD: Tensor,
    value_SBGD: Tensor,
    boundaries: Tensor | None,
    *,
    group: dist.ProcessGroup,
    kernels: Kernels,
) -> Tensor:
    """Causal attention within the segments of rows that the group shares; as `ring.ring_attention`."""
    length, rows = query_SBND.shape[0] * group.size(), query_SBND.shape[1]
    plans = gather_plan(ends_of_rows(boundaries, rows, length), rows, length, group.size(), group.rank())
    by_row = [tensor.transpose(0, 1) for tensor in (query_SBND, key_SBGD, value_SBGD)]
    return _Gathered.apply(*by_row, plans, group, kernels).transpose(0, 1)


class _Gathered(torch.autograd.Function):
    """On ``[B, S, heads, D]``."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plans: tuple[GatherPlan, ...],
        group: dist.ProcessGroup,
        kernels: Kernels,
    ) -> Tensor:
        out, lse = torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)
        keys = _gather(torch.stack([key, value]), group)
        for plan in plans:
            mine = plan.row, plan.queries
            part = kernels.attention_forward(
                query[mine], *keys[:, plan.row, plan.keys], plan.query_ends, plan.key_ends, True
            )
            out[mine], lse[mine] = part
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.plans, ctx.group, ctx.backward_kernel = plans, group, kernels.attention_backward
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        keys = _gather(torch.stack([key, value]), ctx.group)
        grad_query = torch.empty_like(query)
        grad_keys = torch.zeros_like(keys, dtype=torch.float32)
        for plan in ctx.plans:
            mine = plan.row, plan.queries
            tensors = (grad[mine], query[mine], *keys[:, plan.row, plan.keys], out[mine], lse[mine])
            grad_query[mine], *parts = ctx.backward_kernel(*tensors, plan.query_ends, plan.key_ends, True)
            grad_keys[:, plan.row, plan.keys] += torch.stack(parts)
        grad_key, grad_value = _scatter_sum(grad_keys, ctx.group).to(key.dtype)
        return grad_query, grad_key, grad_value, None, None, None


def _gather(keys: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The zigzag chunks ``[2, B, S, G, D]`` of every rank in the order of the row: ``[2, B, R * S, G, D]``."""
    gathered = keys.new_empty(group.size(), *keys.shape)
    dist.all_gather_into_tensor(gathered.flatten(0, 1), keys.contiguous(), group=group)
    front, back = gathered.chunk(2, 3)  # [R, 2, B, S / 2, G, D]
    return torch.cat([*front, *reversed(back.unbind())], 2)


def _scatter_sum(grads: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over the ranks of ``[2, B, R * S, G, D]``, of which each keeps its zigzag chunks."""
    chunks = grads.chunk(2 * group.size(), 2)
    parts = torch.stack([torch.cat([chunks[rank], chunks[-1 - rank]], 2) for rank in range(group.size())])
    own = torch.empty_like(parts[0])
    dist.reduce_scatter_tensor(own, parts.flatten(0, 1), group=group)
    return own
