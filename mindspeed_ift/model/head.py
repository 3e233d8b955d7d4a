"""Output layer and loss on the learnt positions only: prompts and pads never meet the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed_ift.devices.device import current
from mindspeed_ift.mcore import ProcessGroupCollection, tensor_parallel

# Shapes: S positions, B rows, H hidden size, V rows of the output layer on this tensor rank, L learnt positions,
# P positions of one piece, R rows of one tile.

_PIECE_BYTES = 1 << 26
"""Logits of one piece, in fp32, unless --loss-chunk-size says otherwise: few enough to stay out of the way of activations,
many enough for the matrix product to be as fast as a whole one."""

_KEPT_BYTES = 1 << 29
"""Largest gradient of the output layer, in fp32, that is held from the forward to the backward pass."""

_TILE_POSITIONS = 1 << 12
"""Positions of a tile where the weight's gradient is too large to be held: each row of the weight and of its gradient is
then read and written once for so many positions, and not for the few whose logits of the whole vocabulary a piece holds."""

_ALIGNED = 128
"""Rows of a tile are a multiple of it: products of matrices whose rows begin anywhere are slow on tensor cores."""


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
    positions_L: Tensor | None = None,
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
        chunk_size: learnt positions whose logits exist at once; None: what `_PIECE_BYTES` hold.
        each: do not sum, and take no gradient.
        positions_L: of `learnt_positions`, not looked at with ``each``; None: found here, and the host waits for the device.

    Returns:
        fp32 scalar; with no learnt position 0 with a zero gradient. With ``each`` fp32 ``[2, L]``: the weighted loss of each
        learnt position, row after row, and 1 where the label has the largest logit, else 0.
    """
    group = groups.tp
    if sequence_parallel:
        hidden = tensor_parallel.gather_from_sequence_parallel_region(hidden_SBH, group=group)
    else:
        hidden = tensor_parallel.copy_to_tensor_model_parallel_region(hidden_SBH, group=group)
    if each:
        row, place = loss_mask_BS.nonzero(as_tuple=True)
        positions = place * loss_mask_BS.shape[0] + row
    else:
        positions = learnt_positions(loss_mask_BS) if positions_L is None else positions_L
    learnt = hidden.flatten(0, 1).index_select(0, positions)
    labels = labels_BS.t().reshape(-1).index_select(0, positions)
    weights = loss_mask_BS.t().reshape(-1).index_select(0, positions)
    vocabulary = _Vocabulary(vocab_size, dist.get_rank(group) * weight_VH.shape[0], chunk_size, group)
    if each:
        with torch.no_grad():
            losses, _, best = _losses(learnt, weight_VH, labels, vocabulary)
            return torch.stack([losses * weights, best])
    return _LossOfPieces.apply(learnt, weight_VH, labels, weights, vocabulary)


def learnt_positions(loss_mask_BS: Tensor) -> Tensor:
    """Where the mask is not 0, in the order of ``[S, B]``: int64 ``[L]``. On a device, the host waits for how many."""
    return loss_mask_BS.t().reshape(-1).nonzero().flatten()


@dataclass(frozen=True)
class _Vocabulary:
    """The part of it on this tensor rank.

    Attributes:
        size: columns that are tokens, over all ranks.
        first: column of this rank's first row.
        chunk_size: learnt positions whose logits exist at once, or None.
        group: tensor parallel peers.
    """

    size: int
    first: int
    chunk_size: int | None
    group: dist.ProcessGroup


class _LossOfPieces(torch.autograd.Function):
    """The loss and its gradients, piece by piece.

    The gradient of a sum needs nothing that comes later, so where the weight's gradient is small it is taken at once, in
    the forward pass, and only scaled in the backward pass. Where it is large, the backward pass computes the logits again,
    tile by tile, and adds to the buffer in which Megatron sums gradients, so that no second one of its size exists.

    Source: Hsu et al. 2024 (Liger Kernel, FusedLinearCrossEntropy), here over a vocabulary split among tensor ranks as
    in Megatron's vocab_parallel_cross_entropy.
    """

    @staticmethod
    def forward(  # noqa: D102
        context: Any, hidden_LH: Tensor, weight_VH: Tensor, labels_L: Tensor, weights_L: Tensor, vocabulary: _Vocabulary
    ) -> Tensor:
        wanted = any(context.needs_input_grad[:2])
        context.vocabulary, context.gradients = vocabulary, None
        # In fp16 the gradient has to be scaled before it is rounded.
        if not wanted or weight_VH.numel() * 4 > _KEPT_BYTES or hidden_LH.dtype is torch.float16:
            losses, sums, _ = _losses(hidden_LH, weight_VH, labels_L, vocabulary)
            context.save_for_backward(hidden_LH, weight_VH, labels_L, weights_L, sums)
            return (losses * weights_L).sum()
        context.save_for_backward(hidden_LH, weight_VH)
        grad_hidden = torch.empty_like(hidden_LH)
        grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if context.needs_input_grad[1] else None
        context.gradients = (grad_hidden, grad_weight)
        return _walk(hidden_LH, weight_VH, labels_L, weights_L, vocabulary, grad_hidden, grad_weight)

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        hidden_LH, weight_VH, *rest = context.saved_tensors
        nothing = (None,) * 3
        if context.gradients is not None:
            grad_hidden, grad_weight = context.gradients
            del context.gradients  # scaled in place, once
            grad_hidden.mul_(grad)
            if grad_weight is not None:
                grad_weight = grad_weight.mul_(grad).to(weight_VH.dtype)
            return grad_hidden, grad_weight, *nothing
        labels_L, weights_L, sums_L = rest
        arguments = (hidden_LH, weight_VH, labels_L, weights_L * grad, sums_L, context.vocabulary)
        if not context.needs_input_grad[1]:
            return _gradients(*arguments, None), None, *nothing
        shared = getattr(weight_VH, "main_grad", None)
        grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if shared is None else shared
        grad_hidden = _gradients(*arguments, grad_weight)
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
    vocabulary: _Vocabulary,
    grad_hidden: Tensor,
    grad_weight: Tensor | None,
) -> Tensor:
    """The weighted loss sum, fp32, and its gradients in one go over pieces of the positions.

    Args:
        hidden_LH: of the learnt positions.
        weight_VH: this rank's rows of the output layer.
        labels_L: int64.
        weights_L: fp32.
        vocabulary: of this rank.
        grad_hidden: to fill with this rank's part of the gradient, ``[L, H]``.
        grad_weight: to add the gradient to, fp32 ``[V, H]``, or None.
    """
    rows = weight_VH.shape[0]
    chunk_size = vocabulary.chunk_size or max(1, _PIECE_BYTES // (4 * rows))
    total = hidden_LH.new_zeros((), dtype=torch.float32)
    for start in range(0, len(labels_L), chunk_size):
        piece = slice(start, start + chunk_size)
        hidden_PH, weights_P = hidden_LH[piece], weights_L[piece]
        logits_PV, local_P, here_P = _tile(hidden_PH, weight_VH, labels_L[piece], vocabulary, 0)
        logits_PV = logits_PV.float()
        target_P = logits_PV.gather(1, local_P[:, None])[:, 0].masked_fill(~here_P, 0.0)
        largest_P = _reduced(logits_PV.amax(1), dist.ReduceOp.MAX, vocabulary.group)
        exponentials_PV = logits_PV.sub_(largest_P[:, None]).exp_()
        sums_P, target_P = _reduced(
            torch.stack([exponentials_PV.sum(1), target_P]), dist.ReduceOp.SUM, vocabulary.group
        )
        total += ((sums_P.log() + largest_P - target_P) * weights_P).sum()
        grad_PV = exponentials_PV.mul_((weights_P / sums_P)[:, None])
        grad_PV = grad_PV.scatter_add_(1, local_P[:, None], -(here_P * weights_P)[:, None]).to(hidden_LH.dtype)
        grad_hidden[piece] = current().kernels.linear(grad_PV, weight_VH.t())
        if grad_weight is not None:
            current().kernels.add_product(grad_weight, grad_PV, hidden_PH)
    return total


def _losses(
    hidden_LH: Tensor, weight_VH: Tensor, labels_L: Tensor, vocabulary: _Vocabulary
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each position, over all ranks: the loss without its weight, the log-sum-exp of its logits, and 1 where the label
    has the largest, else 0; fp32 ``[L]``."""
    sums_L = hidden_LH.new_full(labels_L.shape, -torch.inf, dtype=torch.float32)
    largest_L, targets_L = sums_L.clone(), torch.zeros_like(sums_L)
    for piece, block in _tiles(len(labels_L), weight_VH.shape[0], vocabulary.chunk_size):
        logits_PR, local_P, here_P = _tile(hidden_LH[piece], weight_VH[block], labels_L[piece], vocabulary, block.start)
        target_P, largest_P, part_P = current().kernels.softmax_sums(logits_PR, local_P)
        targets_L[piece].add_(target_P.masked_fill(~here_P, 0.0))
        sums_L[piece] = torch.logaddexp(sums_L[piece], part_P)
        largest_L[piece] = torch.maximum(largest_L[piece], largest_P)
    largest_L = _reduced(largest_L, dist.ReduceOp.MAX, vocabulary.group)
    shares_L, targets_L = _reduced(
        torch.stack([(sums_L - largest_L).exp_(), targets_L]), dist.ReduceOp.SUM, vocabulary.group
    )
    sums_L = shares_L.log() + largest_L
    return sums_L - targets_L, sums_L, (targets_L == largest_L).float()


def _gradients(
    hidden_LH: Tensor,
    weight_VH: Tensor,
    labels_L: Tensor,
    weights_L: Tensor,
    sums_L: Tensor,
    vocabulary: _Vocabulary,
    grad_weight: Tensor | None,
) -> Tensor:
    """This rank's part of the gradient of the hidden states, ``[L, H]``; adds the weight's to ``grad_weight``.

    Args:
        hidden_LH: of the learnt positions.
        weight_VH: this rank's rows of the output layer.
        labels_L: int64.
        weights_L: what the gradient of each position's loss is multiplied by, fp32.
        sums_L: of `_losses`.
        vocabulary: of this rank.
        grad_weight: fp32 ``[V, H]``, or None.
    """
    grad_hidden = torch.empty_like(hidden_LH)
    for piece, block in _tiles(len(labels_L), weight_VH.shape[0], vocabulary.chunk_size):
        hidden_PH, weight_RH, weights_P = hidden_LH[piece], weight_VH[block], weights_L[piece]
        logits_PR, local_P, here_P = _tile(hidden_PH, weight_RH, labels_L[piece], vocabulary, block.start)
        chosen = (local_P, here_P * weights_P)
        grad_PR = current().kernels.softmax_gradient(logits_PR, sums_L[piece], weights_P, *chosen)
        if block.start == 0:
            grad_PH = torch.zeros_like(hidden_PH, dtype=torch.float32)  # summed in fp32, whatever the dtype
        current().kernels.add_product(grad_PH, grad_PR.t(), weight_RH)
        if block.stop == weight_VH.shape[0]:
            grad_hidden[piece] = grad_PH
        if grad_weight is not None:
            current().kernels.add_product(grad_weight[block], grad_PR, hidden_PH)
    return grad_hidden


def _tiles(positions: int, rows: int, chunk_size: int | None) -> Iterator[tuple[slice, slice]]:
    """Positions and rows of the weight whose logits exist at once: of a few positions all, else what `_PIECE_BYTES` hold."""
    piece = min(chunk_size or _TILE_POSITIONS, max(positions, 1))
    block = rows if chunk_size is not None else max(1, _PIECE_BYTES // (4 * piece))
    block -= block % _ALIGNED if _ALIGNED < block < rows else 0
    for start in range(0, positions, piece):
        for first in range(0, rows, block):
            yield slice(start, min(start + piece, positions)), slice(first, min(first + block, rows))


def _tile(
    hidden_PH: Tensor, weight_RH: Tensor, labels_P: Tensor, vocabulary: _Vocabulary, first_row: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits ``[P, R]``, the column of each label among them, or some other, and whether it is one of them, both ``[P]``.

    ``first_row`` is that of ``weight_RH`` among this rank's.
    """
    first, rows = vocabulary.first + first_row, weight_RH.shape[0]
    logits_PR = current().kernels.linear(hidden_PH, weight_RH)
    mask_padding(logits_PR, vocabulary.size - first)
    local_P = labels_P - first
    here_P = (local_P >= 0) & (local_P < rows)
    return logits_PR, local_P.clamp(0, rows - 1), here_P


def mask_padding(logits: Tensor, first_padding: int) -> None:
    """Push the columns from ``first_padding`` on (vocabulary padding of this shard) out of the softmax, in place."""
    if first_padding < logits.shape[-1]:
        logits[..., max(first_padding, 0) :] = torch.finfo(logits.dtype).min / 2


def _reduced(values: Tensor, operation: dist.ReduceOp, group: dist.ProcessGroup) -> Tensor:
    """Over the tensor ranks, in place."""
    if group.size() > 1:
        dist.all_reduce(values, operation, group=group)
    return values
