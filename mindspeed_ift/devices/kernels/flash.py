"""Attention over boundaries by a flash attention that takes rows of several lengths: torch's own, or flash-attn's.

Both are called as their documentation says, take shared key heads as they are, align a triangle at the bottom right, and
give the log-sum-exp. Ends of segments go to the device once for all layers, lengths are known on the host: nothing is
read from the device.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from packaging.version import Version
from torch import Tensor

from mindspeed_ift.devices.kernels import reference
from mindspeed_ift.devices.transfer import upload

# Shapes: B rows, S positions of a row, T tokens, N query heads, G key/value heads, D head size.

DTYPES = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 256
_MULTIPLE_OF_HEAD = 8
_WHOLE, _CAUSAL = (-1, -1), (-1, 0)  # window_size: keys to the left and to the right of a query; -1: all


class Spans(NamedTuple):
    """The segments of one call: their ends among queries and keys, int32 on the device, and the longest of each."""

    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int


@dataclass(frozen=True)
class Flash:
    """The functions of the table's group ``attention`` by one library.

    Attributes:
        label: what the log calls it.
        forward: query ``[T, N, D]``, key and value ``[T', G, D]``, spans, causal -> output, log-sum-exp fp32 ``[N, T]``.
        backward: gradient of the output, query, key, value, output, log-sum-exp, spans, causal -> their gradients.
    """

    label: str
    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]

    def attention(self, query_SBND: Tensor, key_SBGD: Tensor, value_SBGD: Tensor, boundaries: Tensor | None) -> Tensor:
        """As `reference.attention`, which serves where dtype or head size are none of the library's."""
        if not fits(query_SBND):
            return reference.attention(query_SBND, key_SBGD, value_SBGD, boundaries)
        length, rows = query_SBND.shape[:2]
        ends = range(0, rows * length + 1, length) if boundaries is None else boundaries.tolist()
        tokens = [tensor.transpose(0, 1).flatten(0, 1) for tensor in (query_SBND, key_SBGD, value_SBGD)]
        return _Attention.apply(*tokens, tuple(ends), self).unflatten(0, (rows, length)).transpose(0, 1)

    def attention_forward(
        self,
        query_TND: Tensor,
        key_TGD: Tensor,
        value_TGD: Tensor,
        query_ends: Sequence[int],
        key_ends: Sequence[int],
        causal: bool,
    ) -> tuple[Tensor, Tensor]:
        """As `blocks.attention_forward`."""
        if not fits(query_TND):
            return reference.attention_forward(query_TND, key_TGD, value_TGD, query_ends, key_ends, causal)
        spans = _spans(tuple(query_ends), tuple(key_ends), query_TND.device)
        out, lse_NT = self.forward(query_TND, key_TGD, value_TGD, spans, causal)
        return out, lse_NT.t().contiguous()

    def attention_backward(
        self,
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
        """As `blocks.attention_backward`: output and log-sum-exp of the whole make the weights of the part."""
        tensors = (grad_TND, query_TND, key_TGD, value_TGD, out_TND)
        if not fits(query_TND):
            return reference.attention_backward(*tensors, lse_TN, query_ends, key_ends, causal)
        spans = _spans(tuple(query_ends), tuple(key_ends), query_TND.device)
        query, key, value = self.backward(*tensors, lse_TN.t().contiguous(), spans, causal)
        return query.float(), key.float(), value.float()


def fits(query: Tensor) -> bool:
    """Whether dtype and head size are those of both libraries."""
    size = query.shape[-1]
    return query.dtype in DTYPES and size <= LARGEST_HEAD and size % _MULTIPLE_OF_HEAD == 0


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, ends: tuple[int, ...], flash: Flash) -> Tensor:
        ctx.spans, ctx.flash = _spans(ends, ends, query.device), flash
        out, lse = flash.forward(query, key, value, ctx.spans, True)
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.flash.backward(grad, *ctx.saved_tensors, ctx.spans, True), None, None


@lru_cache(maxsize=64)  # every layer of a stage asks for the same, for each step of a ring
def _spans(query_ends: tuple[int, ...], key_ends: tuple[int, ...], device: torch.device) -> Spans:
    """Segments without tokens are left out."""
    pairs = list(zip(query_ends, key_ends, strict=True))
    pairs = [pairs[0], *(after for before, after in zip(pairs, pairs[1:]) if after != before)]
    sides = [list(side) for side in zip(*pairs, strict=True)]
    lengths = [max((after - before for before, after in zip(side, side[1:])), default=0) for side in sides]
    with torch.inference_mode(False):  # the backward pass of later calls keeps them too
        ends = [upload(torch.tensor(side, dtype=torch.int32), device) for side in sides]
    return Spans(ends[0], ends[1], lengths[0], lengths[1])


def of_torch() -> Flash | None:
    """torch's ``varlen_attn``; None in a torch that has none (before 2.10)."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return None
    from torch.nn.attention import varlen

    known = inspect.signature(varlen.varlen_attn).parameters
    shared: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in known else {}  # 2.10 takes them without being told

    def masked(causal: bool) -> dict[str, Any]:
        return {"window_size": _CAUSAL if causal else _WHOLE} if "window_size" in known else {"is_causal": causal}

    def forward(query: Tensor, key: Tensor, value: Tensor, spans: Spans, causal: bool) -> tuple[Tensor, Tensor]:
        options = shared | masked(causal)
        return varlen.varlen_attn(query, key, value, *spans, return_aux=varlen.AuxRequest(lse=True), **options)

    def backward(
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse_NT: Tensor,
        spans: Spans,
        causal: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # What varlen_attn's own backward pass calls, which would not take the log-sum-exp of a whole. Without dropout
        # there is no state of a random generator.
        state = torch.zeros(2, dtype=torch.uint64, device=query.device)
        return torch.ops.aten._flash_attention_backward(
            grad, query, key, value, out, lse_NT, *spans, 0.0, causal, state, torch.empty(0, device=query.device)
        )

    return Flash("varlen_attn", forward, backward)


def of_flash_attn() -> Flash | None:
    """flash-attn's functions for several lengths, as since 2.7; None where no such package is installed.

    Of its backward pass only the function under its autograd takes the log-sum-exp of a whole.
    """
    if importlib.util.find_spec("flash_attn") is None or Version(version("flash_attn")) < Version("2.7"):
        return None
    from flash_attn import flash_attn_interface as library

    def forward(query: Tensor, key: Tensor, value: Tensor, spans: Spans, causal: bool) -> tuple[Tensor, Tensor]:
        found = library.flash_attn_varlen_func(query, key, value, *spans, causal=causal, return_attn_probs=True)
        return found[0], found[1]

    def backward(
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse_NT: Tensor,
        spans: Spans,
        causal: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads = tuple(torch.empty_like(tensor) for tensor in (query, key, value))
        library._flash_attn_varlen_backward(
            *(grad, query, key, value, out, lse_NT, *grads, *spans),
            dropout_p=0.0,
            softmax_scale=query.shape[-1] ** -0.5,
            causal=causal,
            softcap=0.0,
            alibi_slopes=None,
            window_size_left=-1,
            window_size_right=-1,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return grads

    return Flash("flash-attn", forward, backward)
