"""Attention of some queries to some keys in plain torch, with what merging such parts takes.

Ring attention and key gathering compute a row in parts. The forward pass returns each part's log-sum-exp, by which parts
are merged; the backward pass takes the output and the log-sum-exp of the *merged* attention, which makes each part's
gradients those of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Shapes: T tokens, Q queries and K keys of one tile, N query heads, G key/value heads, R = N / G, D head size.

_TILE = 1024
"""Queries whose scores exist at once, in fp32: bounds the memory of long segments."""


def attention_forward(
    query_TND: Tensor,
    key_TGD: Tensor,
    value_TGD: Tensor,
    query_ends: Sequence[int],
    key_ends: Sequence[int],
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """Attention of each segment's queries to the same segment's keys.

    Args:
        query_TND: ``[T, N, D]``, any float dtype.
        key_TGD: ``[T', G, D]``; ``G`` divides ``N``.
        value_TGD: ``[T', G, D]``.
        query_ends: ends of the segments among the queries, cumulative from 0 to ``T``.
        key_ends: as many ends among the keys, from 0 to ``T'``.
        causal: the last query of a segment sees all its keys, the one before it one key less, and so on (aligned at
            the bottom right; a segment has at least as many keys as queries). Otherwise every query sees every key.

    Returns:
        The output ``[T, N, D]`` in the dtype of the query, and the log-sum-exp of the scores ``[T, N]`` in fp32.

    Source: Dao et al. 2022 (FlashAttention); the scale is ``D ** -0.5``.
    """
    out = torch.empty_like(query_TND)
    sums = query_TND.new_empty(query_TND.shape[:2], dtype=torch.float32)
    for queries, keys in _tiles(query_ends, key_ends, causal):
        scores = _scores(query_TND[queries], key_TGD[keys], causal)
        lse = scores.logsumexp(-1)
        mixed = (scores - lse[..., None]).exp() @ value_TGD[keys].transpose(0, 1).float()
        out[queries] = _as_tokens(mixed, query_TND.shape[1])
        sums[queries] = _as_tokens(lse[..., None], query_TND.shape[1])[..., 0]
    return out, sums


def attention_backward(
    grad_TND: Tensor,
    query_TND: Tensor,
    key_TGD: Tensor,
    value_TGD: Tensor,
    out_TND: Tensor,
    lse_TN: Tensor,
    query_ends: Sequence[int],
    key_ends: Sequence[int],
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value by this part of the attention, in fp32.

    Args:
        grad_TND: gradient of the merged output, ``[T, N, D]``.
        query_TND: as in `attention_forward`.
        key_TGD: as in `attention_forward`.
        value_TGD: as in `attention_forward`.
        out_TND: the merged output.
        lse_TN: the merged log-sum-exp, fp32.
        query_ends: as in `attention_forward`.
        key_ends: as in `attention_forward`.
        causal: as in `attention_forward`.
    """
    heads, key_heads = query_TND.shape[1], key_TGD.shape[1]
    scale = query_TND.shape[-1] ** -0.5
    grad_query, grad_key, grad_value = (
        torch.zeros_like(x, dtype=torch.float32) for x in (query_TND, key_TGD, value_TGD)
    )
    for queries, keys in _tiles(query_ends, key_ends, causal):
        grad, out = (_as_groups(x[queries], key_heads) for x in (grad_TND, out_TND))
        lse = _as_groups(lse_TN[queries][..., None], key_heads)
        weights = (_scores(query_TND[queries], key_TGD[keys], causal) - lse).exp()
        grad_weights = grad @ value_TGD[keys].transpose(0, 1).float().mT
        grad_scores = weights * (grad_weights - (grad * out).sum(-1, keepdim=True)) * scale
        grad_query[queries] += _as_tokens(grad_scores @ key_TGD[keys].transpose(0, 1).float(), heads)
        grad_key[keys] += (grad_scores.mT @ _as_groups(query_TND[queries], key_heads)).transpose(0, 1)
        grad_value[keys] += (weights.mT @ grad).transpose(0, 1)
    return grad_query, grad_key, grad_value


def merge(out_TND: Tensor, lse_TN: Tensor, part_TND: Tensor, part_lse_TN: Tensor) -> None:
    """Add a part to an output, both in place: ``out`` fp32 ``[T, N, D]``, ``lse`` fp32 ``[T, N]``."""
    merged = torch.logaddexp(lse_TN, part_lse_TN)
    out_TND.mul_((lse_TN - merged).exp()[..., None]).add_(part_TND * (part_lse_TN - merged).exp()[..., None])
    lse_TN.copy_(merged)


def _tiles(query_ends: Sequence[int], key_ends: Sequence[int], causal: bool) -> Iterator[tuple[slice, slice]]:
    """Queries and the keys they see, no more than `_TILE` queries at once; keys that none of them sees are left out."""
    segments = zip(query_ends[:-1], query_ends[1:], key_ends[:-1], key_ends[1:], strict=True)
    for first, last, first_key, last_key in segments:
        for start in range(first, last, _TILE):
            stop = min(start + _TILE, last)
            unseen = last - stop if causal else 0
            yield slice(start, stop), slice(first_key, last_key - unseen)


def _scores(query_QND: Tensor, key_KGD: Tensor, causal: bool) -> Tensor:
    """fp32 ``[G, R * Q, K]``, scaled; what a query must not see is -inf."""
    scores = _as_groups(query_QND, key_KGD.shape[1]) @ key_KGD.permute(1, 2, 0).float() * query_QND.shape[-1] ** -0.5
    if causal:
        queries, keys = len(query_QND), len(key_KGD)
        hidden = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).triu(keys - queries + 1)
        scores = scores.unflatten(1, (-1, queries)).masked_fill(hidden, -torch.inf).flatten(1, 2)
    return scores


def _as_groups(tensor_QND: Tensor, key_heads: int) -> Tensor:
    """``[Q, N, D]`` to fp32 ``[G, R * Q, D]``: the query heads that share a key head become more queries of it."""
    return tensor_QND.float().unflatten(1, (key_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)


def _as_tokens(tensor: Tensor, heads: int) -> Tensor:
    """``[G, R * Q, D]`` back to ``[Q, N, D]``."""
    return tensor.unflatten(1, (heads // len(tensor), -1)).flatten(0, 1).transpose(0, 1)
