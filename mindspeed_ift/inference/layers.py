"""Megatron's layers as functions of a few tensor operations: the same weights, without what a layer does besides.

A token at a time the calls take longer than the arithmetic, and most of Megatron's are about training: recompute, gradients,
communication that overlaps. Parts that talk to other ranks and layers with adapters stay Megatron's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from mindspeed_ift.devices.device import current
from mindspeed_ift.mcore import ColumnParallelLinear, MoELayer, RowParallelLinear
from mindspeed_ift.model.backend import RMSNorm

# Shapes: S positions, B rows, H hidden size, N query heads, G key/value heads, D head size, all of this tensor rank.

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries ``[S, B, N, D]``, keys and values ``[S, B, G, D]``, the first two turned -> ``[S, B, N, D]``."""

LARGE = 2**18
"""Numbers of a weight from which on the device's kernel is worth its call: no cache of the host keeps all of a model's."""


class PlainLayer:
    """A transformer layer of a `Qwen3Model`.

    Args:
        layer: Megatron's, whose weights are used where they lie.
        attend: attention over what was read.
    """

    def __init__(self, layer: nn.Module, attend: Attend) -> None:
        attention, mlp = layer.self_attention, layer.mlp
        self.attend, self.rotate = attend, current().kernels.rotary
        self.groups, self.head_size = attention.num_query_groups_per_partition, attention.hidden_size_per_attention_head
        self.before_attention, self.before_mlp = plain_norm(layer.input_layernorm), plain_norm(layer.pre_mlp_layernorm)
        self.qkv, self.project = plain_linear(attention.linear_qkv), plain_linear(attention.linear_proj)
        self.query_norm, self.key_norm = plain_norm(attention.q_layernorm), plain_norm(attention.k_layernorm)
        self.mlp = plain_experts(mlp) if isinstance(mlp, MoELayer) else _plain_mlp(mlp)

    def __call__(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """One pass.

        Args:
            hidden: ``[S, B, H]``.
            cosine: of the positions' angles, ``[S, B, 1, D]``.
            sine: like ``cosine``.
        """
        length, rows, _ = hidden.shape
        # Of each group its query heads, then the key, then the value.
        mixed = self.qkv(self.before_attention(hidden)).view(length, rows, self.groups, -1, self.head_size)
        query = self.query_norm(mixed[..., :-2, :]).reshape(length, rows, -1, self.head_size)
        key, value = self.key_norm(mixed[..., -2, :]), mixed[..., -1, :]
        seen = self.attend(self.rotate(query, cosine, sine), self.rotate(key, cosine, sine), value)
        hidden = hidden + self.project(seen.flatten(2))
        return hidden + self.mlp(self.before_mlp(hidden))


def plain_norm(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """A `backend.RMSNorm` as its kernel; what stands where there is no norm as nothing."""
    if not isinstance(norm, RMSNorm):
        return lambda hidden: hidden
    kernel, weight, epsilon = norm.kernel, norm.weight, norm.eps
    return lambda hidden: kernel(hidden, weight, epsilon)


def plain_linear(linear: Any, weight: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """A parallel linear layer as a product with its weight (or the one given) where no other rank and no adapter is."""
    if type(linear) in (ColumnParallelLinear, RowParallelLinear) and linear.tp_group.size() == 1:
        own, bias = linear.weight if weight is None else weight, linear.bias
        if bias is not None or own.numel() < LARGE:
            return partial(functional.linear, weight=own, bias=bias)
        multiply = current().kernels.linear
        return lambda hidden: multiply(hidden, own)
    given = {} if weight is None else {"weight": weight}
    return lambda hidden: linear(hidden, **given)[0]


def _plain_mlp(mlp: Any) -> Callable[[Tensor], Tensor]:
    gate_and_up, activate, down = plain_linear(mlp.linear_fc1), mlp.activation_func.kernel, plain_linear(mlp.linear_fc2)
    return lambda hidden: down(activate(gate_and_up(hidden)))


def plain_experts(block: MoELayer) -> Callable[[Tensor], Tensor]:
    """A mixture of experts, all of which this rank has whole; as Megatron's own where other ranks have a part of them."""
    router, experts, kernels = block.router, block.experts, current().kernels
    if experts.ep_group.size() * experts.tp_group.size() > 1:
        return lambda hidden: block(hidden)[0]
    count, each, of_all = experts.num_local_experts, block.config.moe_router_topk, block.config.moe_router_pre_softmax

    def mixed(hidden: Tensor) -> Tensor:
        tokens = hidden.flatten(0, 1)
        logits = functional.linear(tokens.float(), router.weight.float())
        # Weights are shares of all experts, or of the chosen ones.
        scores, chosen = (logits.softmax(-1) if of_all else logits).topk(each)
        weights = (scores if of_all else scores.softmax(-1)).flatten()
        ordered, places = kernels.permute(tokens, chosen)
        weights = torch.empty_like(weights).scatter_(0, places.long(), weights)
        out, _ = experts(ordered, chosen.flatten().bincount(minlength=count), weights)
        return kernels.unpermute(out, places, each).view_as(hidden)

    return mixed
