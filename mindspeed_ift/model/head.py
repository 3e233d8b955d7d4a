"""Output layer and loss on the learnt positions only: prompts and pads never meet the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed_ift.devices.device import current
from mindspeed_ift.mcore import ProcessGroupCollection, tensor_parallel

# Shapes: S positions, B rows, H hidden size, V rows of the output layer on this tensor rank, L learnt positions,
# P positions of one piece.

_PIECE_BYTES = 1 << 26
"""Logits of one piece, in fp32, unless --loss-chunk-size says otherwise: few enough to stay out of the way of activations,
many enough for the matrix product to be as fast as a whole one."""

_KEPT_BYTES = 1 << 29
"""Largest gradient of the output layer, in fp32, that is held from the forward to the backward pass."""

_ROWS = 1 << 14
"""Rows of the output layer whose gradient of one piece exists at once, before it is added to the sum in fp32."""


def loss_sum(
    hidden_SBH: Tensor,
    weight_VH: Tensor,
    labels_BS: Tensor,
    loss_mask_BS: Tensor,
    *,
    vocab_size: int,
    groups: ProcessGroupCollection,
    sequence_parallel: bool,
    chunk_size: int | None,
    each: bool = False,
) -> Tensor:
    """Weighted sum of the cross entropy over the learnt positions of a micro-batch.

    Args:
        hidden_SBH: last hidden states, ``[S (or S / TP), B, H]``.
        weight_VH: this rank's rows of the output layer, ``[padded vocabulary / TP, H]``.
        labels_BS: int64, already shifted.
        loss_mask_BS: fp32 weight of each position; 0 is not learnt.
        vocab_size: columns that are tokens; the padding behind them takes no part in the softmax.
        groups: tensor parallel peers.
        sequence_parallel: the hidden states are split along the sequence over the tensor ranks.
        chunk_size: learnt positions whose logits exist at once; None: as many as `_PIECE_BYTES` hold.
        each: do not sum, and take no gradient.

    Returns:
        fp32 scalar; with no learnt position 0 with a zero gradient. With ``each`` fp32 ``[2, L]``: the weighted loss of each
        learnt position, row after row, and 1 where the label has the largest logit, else 0.
    """
    group = groups.tp
    if sequence_parallel:
        hidden = tensor_parallel.gather_from_sequence_parallel_region(hidden_SBH, group=group)
    else:
        hidden = tensor_parallel.copy_to_tensor_model_parallel_region(hidden_SBH, group=group)
    positions = loss_mask_BS.t().reshape(-1).nonzero().flatten()  # in the order of [S, B]
    if each:
        row, place = loss_mask_BS.nonzero(as_tuple=True)
        positions = place * loss_mask_BS.shape[0] + row
    learnt = hidden.flatten(0, 1).index_select(0, positions)
    labels = labels_BS.t().reshape(-1).index_select(0, positions)
    weights = loss_mask_BS.t().reshape(-1).index_select(0, positions)
    chunk_size = chunk_size or max(1, _PIECE_BYTES // (4 * weight_VH.shape[0]))
    if each:
        found = weights.new_empty(2, len(weights))
        _walk(learnt, weight_VH, labels, weights, vocab_size, chunk_size, group, each=found)
        return found
    return _LossOfPieces.apply(learnt, weight_VH, labels, weights, vocab_size, chunk_size, group)


class _LossOfPieces(torch.autograd.Function):
    """The loss and its gradients, piece by piece.

    The gradient of a sum needs nothing that comes later, so where the weight's gradient is small it is taken at once, in
    the forward pass, and only scaled in the backward pass. Where it is large, the backward pass computes the logits again
    and adds to the buffer in which Megatron sums gradients, so that no second one of its size exists.

    Source: Hsu et al. 2024 (Liger Kernel, FusedLinearCrossEntropy), here over a vocabulary split among tensor ranks as
    in Megatron's vocab_parallel_cross_entropy.
    """

    @staticmethod
    def forward(  # noqa: D102
        context: Any,
        hidden_LH: Tensor,
        weight_VH: Tensor,
        labels_L: Tensor,
        weights_L: Tensor,
        vocab_size: int,
        chunk_size: int,
        group: dist.ProcessGroup,
    ) -> Tensor:
        context.rest = (labels_L, weights_L, vocab_size, chunk_size, group)
        context.save_for_backward(hidden_LH, weight_VH)
        wanted = any(context.needs_input_grad[:2])
        context.gradients = None
        # In fp16 the gradient has to be scaled before it is rounded.
        if not wanted or weight_VH.numel() * 4 > _KEPT_BYTES or hidden_LH.dtype is torch.float16:
            return _walk(hidden_LH, weight_VH, *context.rest)
        grad_hidden = torch.empty_like(hidden_LH)
        grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if context.needs_input_grad[1] else None
        context.gradients = (grad_hidden, grad_weight)
        return _walk(hidden_LH, weight_VH, *context.rest, grad_hidden=grad_hidden, grad_weight=grad_weight)

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        hidden_LH, weight_VH = context.saved_tensors
        nothing = (None,) * 5
        if context.gradients is not None:
            grad_hidden, grad_weight = context.gradients
            del context.gradients  # scaled in place, once
            grad_hidden.mul_(grad)
            if grad_weight is not None:
                grad_weight = grad_weight.mul_(grad).to(weight_VH.dtype)
            return grad_hidden, grad_weight, *nothing
        grad_hidden = torch.empty_like(hidden_LH)
        if not context.needs_input_grad[1]:
            _walk(hidden_LH, weight_VH, *context.rest, grad_hidden=grad_hidden, factor=grad)
            return grad_hidden, None, *nothing
        shared = getattr(weight_VH, "main_grad", None)
        grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if shared is None else shared
        _walk(hidden_LH, weight_VH, *context.rest, grad_hidden=grad_hidden, grad_weight=grad_weight, factor=grad)
        if shared is None:
            return grad_hidden, grad_weight.to(weight_VH.dtype), *nothing
        # Megatron's hook wants a gradient, which it adds only where the embedding's is in it too.
        weight_VH.grad_added_to_main_grad = True
        stand_in = torch.zeros_like if getattr(weight_VH, "zero_out_wgrad", False) else torch.empty_like
        return grad_hidden, stand_in(weight_VH), *nothing


def _walk(
    hidden_LH: Tensor,
    weight_VH: Tensor,
    labels_L: Tensor,
    weights_L: Tensor,
    vocab_size: int,
    chunk_size: int,
    group: dist.ProcessGroup,
    *,
    each: Tensor | None = None,
    grad_hidden: Tensor | None = None,
    grad_weight: Tensor | None = None,
    factor: Tensor | None = None,
) -> Tensor:
    """The weighted loss sum, fp32; fills ``grad_hidden`` ``[L, H]`` and adds to ``grad_weight`` ``[V, H]``.

    Args:
        hidden_LH: of the learnt positions.
        weight_VH: this rank's rows of the output layer.
        labels_L: int64.
        weights_L: fp32.
        vocab_size: columns that are tokens, over all ranks.
        chunk_size: positions of a piece.
        group: tensor parallel peers.
        each: to fill as `loss_sum` returns it, fp32 ``[2, L]``, or None.
        grad_hidden: to fill with this rank's part of the gradient, or None.
        grad_weight: to add the gradient to, or None.
        factor: what both gradients are multiplied by; None for 1.
    """
    linear = current().kernels.linear
    rows = weight_VH.shape[0]
    first_row = dist.get_rank(group) * rows
    total = hidden_LH.new_zeros((), dtype=torch.float32)
    for start in range(0, len(labels_L), chunk_size):
        piece = slice(start, start + chunk_size)
        hidden_PH, weights_P = hidden_LH[piece], weights_L[piece]
        logits_PV = linear(hidden_PH, weight_VH).float()
        mask_padding(logits_PV, vocab_size - first_row)
        local_P = labels_L[piece] - first_row
        here_P = (local_P >= 0) & (local_P < rows)
        local_P = local_P.clamp(0, rows - 1)[:, None]
        target_P = logits_PV.gather(1, local_P)[:, 0].masked_fill(~here_P, 0.0)
        largest_P = _reduced(logits_PV.amax(1), dist.ReduceOp.MAX, group)
        exponentials_PV = logits_PV.sub_(largest_P[:, None]).exp_()
        sums_P, target_P = _reduced(torch.stack([exponentials_PV.sum(1), target_P]), dist.ReduceOp.SUM, group)
        losses_P = (sums_P.log() + largest_P - target_P) * weights_P
        total += losses_P.sum()
        if each is not None:
            each[0, piece], each[1, piece] = losses_P, target_P == largest_P
        if grad_hidden is None:
            continue
        scaled_P = weights_P if factor is None else weights_P * factor
        grad_PV = exponentials_PV.mul_((scaled_P / sums_P)[:, None])
        grad_PV = grad_PV.scatter_add_(1, local_P, -(here_P * scaled_P)[:, None]).to(hidden_LH.dtype)
        grad_hidden[piece] = linear(grad_PV, weight_VH.t())
        if grad_weight is not None and grad_weight.dtype == grad_PV.dtype:
            grad_weight.addmm_(grad_PV.t(), hidden_PH)
        elif grad_weight is not None:
            for first in range(0, rows, _ROWS):
                block = slice(first, first + _ROWS)
                grad_weight[block] += grad_PV[:, block].t() @ hidden_PH
    return total


def mask_padding(logits: Tensor, first_padding: int) -> None:
    """Push the columns from ``first_padding`` on (vocabulary padding of this shard) out of the softmax, in place."""
    if first_padding < logits.shape[-1]:
        logits[..., max(first_padding, 0) :] = torch.finfo(logits.dtype).min / 2


def _reduced(values: Tensor, operation: dist.ReduceOp, group: dist.ProcessGroup) -> Tensor:
    """Over the tensor ranks, in place."""
    if group.size() > 1:
        dist.all_reduce(values, operation, group=group)
    return values
