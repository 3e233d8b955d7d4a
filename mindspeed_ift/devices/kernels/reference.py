"""Kernels in plain torch, for every device: attention over boundaries, RMSNorm, SwiGLU, rotary, many matrices at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mindspeed_ift.devices.kernels.blocks import attention_backward, attention_forward

__all__ = [
    "add_product",
    "attention",
    "attention_backward",
    "attention_forward",
    "grouped_matmul",
    "linear",
    "permute",
    "rms_norm",
    "rotary",
    "softmax_gradient",
    "softmax_sums",
    "scaled_dot_products",
    "swiglu",
    "unpermute",
]

_ROWS = 1 << 14
"""Rows of a product that exist at once in a narrow dtype, before they are added to a sum in fp32."""

# Shapes: B rows of a micro-batch, S positions of a row, T = B * S flattened, N query heads, G key/value heads, D head size.


def attention(query_SBND: Tensor, key_SBGD: Tensor, value_SBGD: Tensor, boundaries: Tensor | None) -> Tensor:
    """Causal attention within each row, or within each segment of the flattened rows.

    Args:
        query_SBND: ``[S, B, N, D]``, any float dtype.
        key_SBGD: ``[S, B, G, D]``; ``G`` divides ``N`` (grouped queries, keys are not repeated).
        value_SBGD: ``[S, B, G, D]``.
        boundaries: int32 ``[n + 1]`` on the host, cumulative segment ends over rows laid one after another
            (``0 .. B * S``), or None for one segment a row.

    Returns:
        ``[S, B, N, D]`` in the dtype of the query.

    Source: Vaswani et al. 2017; scale ``D ** -0.5``.
    """
    query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query_SBND, key_SBGD, value_SBGD))
    if boundaries is None:
        return _causal(query, key, value).permute(2, 0, 1, 3)
    batch, _, length, _ = query.shape
    parts = []
    for row in range(batch):
        for start, stop in _segments_of_row(boundaries, row * length, (row + 1) * length):
            piece = slice(start, stop)
            parts.append(
                _causal(query[row : row + 1, :, piece], key[row : row + 1, :, piece], value[row : row + 1, :, piece])
            )
    rows = torch.cat(parts, dim=2)  # [1, N, B * S, D]
    return rows.unflatten(2, (batch, length))[0].permute(2, 1, 0, 3)


def _causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_products(query, key, value, is_causal=True)


def scaled_dot_products(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """torch's ``scaled_dot_product_attention`` by its fused kernel, also where key heads are shared.

    Args:
        query: ``[B, N, S, D]``.
        key: ``[B, G, S', D]``; ``G`` divides ``N``.
        value: ``[B, G, S', D]``.
        options: ``is_causal`` or ``attn_mask``.

    Returns:
        ``[B, N, S, D]``.
    """
    shared = query.shape[1] // key.shape[1]
    if shared > 1 and query.device.type == "cpu" and not _shares_heads_on_cpu():
        key, value = (tensor.repeat_interleave(shared, 1) for tensor in (key, value))
    return functional.scaled_dot_product_attention(
        query, key, value, enable_gqa=query.shape[1] != key.shape[1], **options
    )


@cache
def _shares_heads_on_cpu() -> bool:
    """Whether torch's fused kernel for the CPU takes shared key heads; that of 2.6 and 2.7 does not, and in its place are
    several operations that hold the weights of all queries and keys."""
    query = torch.zeros(1, 2, 1, 8, device="cpu")
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        warnings.simplefilter("ignore")  # it says why not
        try:
            functional.scaled_dot_product_attention(query, query[:, :1], query[:, :1], enable_gqa=True)
        except RuntimeError:
            return False
    return True


def _segments_of_row(boundaries: Tensor, start: int, stop: int) -> list[tuple[int, int]]:
    """(from, to) of each segment inside flattened positions ``start..stop``, relative to ``start``."""
    ends = boundaries.tolist()
    return [
        (low - start, high - start)
        for low, high in zip(ends[:-1], ends[1:], strict=True)
        if start <= low < stop and high > low
    ]


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``hidden / rms(hidden) * weight`` over the last dimension, in the dtype of ``hidden``.

    The mean square is taken in fp32 and the result rounded before the weight is applied, as Hugging Face's Qwen3RMSNorm
    does, so that bf16 agrees with it bit for bit.
    """
    wide = hidden.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight * scaled.to(hidden.dtype)


def swiglu(gate_and_up: Tensor) -> Tensor:
    """``silu(gate) * up`` of ``[..., 2F]``, the gate first: ``[..., F]`` in its dtype.

    Source: Shazeer 2020.
    """
    gate, up = gate_and_up.chunk(2, -1)
    return functional.silu(gate) * up


def rotary(tensor_SBND: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair of channels ``(i, i + D / 2)`` by its angle.

    Args:
        tensor_SBND: ``[S, B, N, D]``.
        cosine: of the angles, ``[S, B, 1, D]``, both halves the same, in the dtype of the tensor.
        sine: like ``cosine``.

    Source: Su et al. 2021, in the half-split form of GPT-NeoX.
    """
    return rotate(tensor_SBND, cosine, sine, turn)


def rotate(
    tensor_SBND: Tensor, cosine: Tensor, sine: Tensor, turn: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """`rotary` by another function for the turn itself, which the backward pass takes too, with the sine's sign changed."""
    return _Rotary.apply(tensor_SBND, cosine, sine, turn)


class _Rotary(torch.autograd.Function):
    """Turns back in the backward pass. The gradient lies in memory as the tensor does, whatever comes in: sums over it are
    then the same to the bit whether attention was recomputed or not."""

    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, cosine: Tensor, sine: Tensor, turn: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        ctx.turn = turn
        return turn(tensor, cosine, sine)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cosine, sine = ctx.saved_tensors
        return ctx.turn(grad.contiguous(), cosine, -sine), None, None, None


def turn(tensor: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """The turn of `rotary`, without a gradient of its own; any shapes that go together and end in ``D``."""
    first, second = tensor.chunk(2, -1)
    return tensor * cosine + torch.cat([-second, first], -1) * sine


def grouped_matmul(tokens_TI: Tensor, weights_EIO: Tensor, counts: Sequence[int]) -> Tensor:
    """The first ``counts[0]`` tokens times the first matrix, the next ``counts[1]`` times the second, and so on.

    Args:
        tokens_TI: ``[T, I]``, any float dtype.
        weights_EIO: ``[E, I, O]``.
        counts: E numbers that sum up to T; any may be 0, and its matrix then gets a gradient of zeros.

    Returns:
        ``[T, O]``.
    """
    if len(tokens_TI) and not torch.is_grad_enabled():  # no gradients of zeros to give: a few of many have a token
        busy = [(expert, end) for expert, end in enumerate(accumulate(counts)) if counts[expert]]
        return torch.cat([tokens_TI[end - counts[expert] : end] @ weights_EIO[expert] for expert, end in busy])
    parts = zip(tokens_TI.split(list(counts)), weights_EIO.unbind(0), strict=True)
    return torch.cat([part @ weight for part, weight in parts])


def linear(tokens_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """``[T, I]`` times the transpose of ``[O, I]``: ``[T, O]``, for the output layer, whose gradient is taken by hand.

    Either may be the transpose of what lies in memory.
    """
    return functional.linear(tokens_TI, weight_OI)


def softmax_sums(logits_PV: Tensor, columns_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the cross entropy of a part of the vocabulary needs of its logits, in fp32.

    Args:
        logits_PV: ``[P, V]``, any float dtype; may be overwritten.
        columns_P: int64 ``[P]``.

    Returns:
        Of each row the logit in its column, the largest, and the log-sum-exp; ``[P]`` each.
    """
    wide = logits_PV.float()
    chosen, largest = wide.gather(1, columns_P[:, None])[:, 0], wide.amax(1)
    return chosen, largest, wide.sub_(largest[:, None]).exp_().sum(1).log_().add_(largest)


def softmax_gradient(
    logits_PV: Tensor, sums_P: Tensor, weights_P: Tensor, columns_P: Tensor, chosen_P: Tensor
) -> Tensor:
    """The gradient of a weighted cross entropy: ``exp(logits - sums) * weights``, less ``chosen`` in one column a row.

    Args:
        logits_PV: ``[P, V]``, any float dtype; may be overwritten.
        sums_P: log-sum-exp of the whole rows, fp32.
        weights_P: fp32.
        columns_P: int64.
        chosen_P: fp32.

    Returns:
        ``[P, V]`` in the dtype of the logits.
    """
    grad = logits_PV.float().sub_(sums_P[:, None]).exp_().mul_(weights_P[:, None])
    return grad.scatter_add_(1, columns_P[:, None], -chosen_P[:, None]).to(logits_PV.dtype)


def add_product(sum_RH: Tensor, left_PR: Tensor, right_PH: Tensor) -> None:
    """Add the transpose of ``[P, R]`` times ``[P, H]`` to ``[R, H]``, in place.

    Args:
        sum_RH: fp32, or the dtype of the others.
        left_PR: any float dtype; may be the transpose of what lies in memory.
        right_PH: the same dtype.
    """
    if sum_RH.dtype == left_PR.dtype:
        sum_RH.addmm_(left_PR.t(), right_PH)
        return
    for first in range(0, len(sum_RH), _ROWS):
        block = slice(first, first + _ROWS)
        sum_RH[block].add_(left_PR[:, block].t() @ right_PH)


def permute(tokens_TH: Tensor, experts_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Each token once for each of its experts, ordered by expert, then by token.

    Args:
        tokens_TH: ``[T, H]``, any float dtype.
        experts_TK: int64 ``[T, K]``, the experts of each token.

    Returns:
        ``[T * K, H]``, and at which place the copy for the ``k``-th expert of token ``t`` stands: integers ``[T * K]``, at
        ``t * K + k``.
    """
    order = experts_TK.flatten().argsort(stable=True)
    places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return tokens_TH.index_select(0, order // experts_TK.shape[1]), places


def unpermute(copies_CH: Tensor, places_C: Tensor, experts: int) -> Tensor:
    """The sum of each token's copies; the way back of `permute`.

    Args:
        copies_CH: ``[T * K, H]``, ordered by expert.
        places_C: as `permute` gave them.
        experts: of a token, K.

    Returns:
        ``[T, H]``.
    """
    return copies_CH.index_select(0, places_C).unflatten(0, (-1, experts)).sum(1)
