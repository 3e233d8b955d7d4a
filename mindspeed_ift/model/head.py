"""Output layer and loss on the learnt positions only: prompts and pads never meet the vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mindspeed_ift.mcore import ProcessGroupCollection, tensor_parallel


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
        chunk_size: learnt positions whose logits exist at once, recomputed in the backward pass; None: all, kept.

    Returns:
        fp32 scalar; with no learnt position 0 with a zero gradient.
    """
    group = groups.tp
    if sequence_parallel:
        hidden = tensor_parallel.gather_from_sequence_parallel_region(hidden_SBH, group=group)
    else:
        hidden = tensor_parallel.copy_to_tensor_model_parallel_region(hidden_SBH, group=group)
    positions = loss_mask_BS.t().reshape(-1).nonzero().flatten()  # in the order of [S, B]
    learnt = hidden.flatten(0, 1).index_select(0, positions)
    labels = labels_BS.t().reshape(-1).index_select(0, positions)
    weights = loss_mask_BS.t().reshape(-1).index_select(0, positions)
    first_padding = vocab_size - torch.distributed.get_rank(group) * weight_VH.shape[0]
    if chunk_size is None or len(positions) <= chunk_size:
        return _piece(learnt, weight_VH, labels, weights, first_padding, group)
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(positions), chunk_size):
        piece = slice(start, start + chunk_size)
        total = total + checkpoint(
            _piece, learnt[piece], weight_VH, labels[piece], weights[piece], first_padding, group, use_reentrant=False
        )
    return total


def _piece(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    weights: Tensor,
    first_padding: int,
    group: torch.distributed.ProcessGroup,
) -> Tensor:
    logits = mask_padding(functional.linear(hidden, weight).float(), first_padding)
    losses = tensor_parallel.vocab_parallel_cross_entropy(logits, labels)
    return (losses * weights).sum()


def mask_padding(logits: Tensor, first_padding: int) -> Tensor:
    """Push the columns from ``first_padding`` on (vocabulary padding of this shard) out of the softmax."""
    if first_padding >= logits.shape[-1]:
        return logits
    padding = torch.arange(logits.shape[-1], device=logits.device) >= first_padding
    return logits.masked_fill(padding, torch.finfo(logits.dtype).min / 2)
