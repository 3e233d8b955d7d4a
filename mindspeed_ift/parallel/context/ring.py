"""Ring attention over a zigzag split: queries stay, keys and values travel while the attention is computed.

A step without a spanning segment passes the keys on and computes nothing (`plan.ring_plan`). The backward pass sends the
keys around once more, and behind them their gradients in fp32, each rank adding its part, until they are home again.

Memory: a rank keeps its own queries, keys, values, output and log-sum-exp for the backward pass, ``O(S / CP)``, and while
computing one further set of keys (backward: two sets of gradients too). Compute: the scores of the pairs of tokens that
see each other, plus nothing: ``sum(length ** 2) / 2`` over the segments, about ``1 / CP`` of it on each rank when long
segments dominate. Communication: ``CP - 1`` times the local keys and values, whatever the boundaries.

Source: Liu et al. 2023 (Ring Attention); zigzag as in Megatron-LM's and zhuzilin's ring-flash-attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed_ift.devices.kernels.blocks import merge
from mindspeed_ift.devices.kernels.table import Kernels
from mindspeed_ift.parallel.context.plan import Rectangle, RingPlan, ends_of_rows, ring_plan

# Shapes: S positions of a rank, B rows, T = B * S, N query heads, G key/value heads, D head size.


def ring_attention(
    query_SBND: Tensor,
    key_SBGD: Tensor,
    value_SBGD: Tensor,
    boundaries: Tensor | None,
    *,
    group: dist.ProcessGroup,
    kernels: Kernels,
) -> Tensor:
    """Causal attention within the segments of rows that the ring shares.

    Args:
        query_SBND: this rank's zigzag chunks, ``[S, B, N, D]``.
        key_SBGD: ``[S, B, G, D]``; ``G`` divides ``N``.
        value_SBGD: ``[S, B, G, D]``.
        boundaries: of the whole rows: int32 ``[n + 1]`` on the host, or None for one segment a row.
        group: the ring.
        kernels: the device's `attention_forward` and `attention_backward`.

    Returns:
        ``[S, B, N, D]``.
    """
    length, rows = query_SBND.shape[0] * group.size(), query_SBND.shape[1]
    plan = ring_plan(ends_of_rows(boundaries, rows, length), rows, length, group.size(), group.rank())
    tokens = [tensor.transpose(0, 1).flatten(0, 1) for tensor in (query_SBND, key_SBGD, value_SBGD)]
    out = _Ring.apply(*tokens, plan, group, kernels)
    return out.unflatten(0, (rows, -1)).transpose(0, 1)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: RingPlan,
        group: dist.ProcessGroup,
        kernels: Kernels,
    ) -> Tensor:
        for step, keys in _travel(torch.stack([key, value]), group):
            if step == 0:
                out, lse = kernels.attention_forward(query, *keys, plan.home, plan.home, True)
                wide = out.float() if any(plan.away) else out
                continue
            for rectangle in plan.away[step - 1]:
                mine = rectangle.queries
                part = kernels.attention_forward(query[mine], *keys[:, rectangle.keys], *_block(rectangle))
                merge(wide[mine], lse[mine], *part)
        out = wide.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.plan, ctx.group, ctx.backward_kernel = plan, group, kernels.attention_backward
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        plan, kernel = ctx.plan, ctx.backward_kernel
        incoming: _Transfer | None = None
        for step, keys in _travel(torch.stack([key, value]), ctx.group):
            if incoming is None:
                grad_query, *parts = kernel(grad, query, *keys, out, lse, plan.home, plan.home, True)
                grad_keys = torch.stack(parts)
            else:
                found = []
                for rectangle in plan.away[step - 1]:
                    mine, theirs = rectangle.queries, rectangle.keys
                    tensors = (grad[mine], query[mine], *keys[:, theirs], out[mine], lse[mine])
                    grad_part, *parts = kernel(*tensors, *_block(rectangle))
                    grad_query[mine] += grad_part
                    found.append((theirs, torch.stack(parts)))
                grad_keys = incoming.wait()  # only now: it travelled while this rank computed
                for theirs, part in found:
                    grad_keys[:, theirs] += part
            incoming = _Transfer(grad_keys, ctx.group, tag=1)
        assert incoming is not None
        grad_key, grad_value = incoming.wait().to(key.dtype)
        return grad_query.to(query.dtype), grad_key, grad_value, None, None, None


def _block(rectangle: Rectangle) -> tuple[tuple[int, int], tuple[int, int], bool]:
    """The ends of the rectangle's only segment, and that it has no mask."""
    queries, keys = rectangle.queries, rectangle.keys
    return (0, queries.stop - queries.start), (0, keys.stop - keys.start), False


class _Transfer:
    """A tensor on its way to the next rank of the ring, and another on its way here from the one before."""

    def __init__(self, tensor: Tensor, group: dist.ProcessGroup, tag: int) -> None:
        ranks, rank = group.size(), group.rank()
        # The sent tensor must live, unchanged, until the send is done.
        self.sent, self.received = tensor, torch.empty_like(tensor)
        self.works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, tensor, group=group, tag=tag, group_peer=(rank + 1) % ranks),
                dist.P2POp(dist.irecv, self.received, group=group, tag=tag, group_peer=(rank - 1) % ranks),
            ]
        )

    def wait(self) -> Tensor:
        """What came from the rank before (on an accelerator this does not stop the host)."""
        for work in self.works:
            work.wait()
        return self.received


def _travel(keys: Tensor, group: dist.ProcessGroup) -> Iterator[tuple[int, Tensor]]:
    """(step, keys at hand) of each step; while the caller computes with them they are sent on."""
    for step in range(group.size() - 1):
        transfer = _Transfer(keys, group, tag=0)
        yield step, keys
        keys = transfer.wait()
    yield group.size() - 1, keys
