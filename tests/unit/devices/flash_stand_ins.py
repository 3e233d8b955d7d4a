"""Reference mathematics in the place of flash attention on CUDA, for CPU tensors: it refuses what the real ones refuse.

torch's operators keep their schemas, and `varlen_attn` its own code, which calls them; flash-attn's functions have the
signatures of its version 2.8.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor

from mindspeed_ift.devices.kernels import blocks

CALLS: list[str] = []
"""Which function was called; tests clear it."""


def install() -> torch.library.Library:
    """Register CPU kernels of torch's operators; they are gone with the library."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", _forward_of_torch, "CPU")
    library.impl("_flash_attention_backward", _backward_of_torch, "CPU")
    return library


def _forward_of_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    window_size_left: int = -1,
    window_size_right: int = -1,
    **_: Any,
) -> tuple[Tensor, ...]:
    CALLS.append("_flash_attention_forward")
    assert dropout_p == 0 and (window_size_left, window_size_right) == (-1, 0 if is_causal else -1)
    out, lse = _forward(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, is_causal)
    nothing = torch.empty(0)
    return out, lse, torch.zeros(2, dtype=torch.uint64), nothing, nothing


def _backward_of_torch(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    **_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    CALLS.append("_flash_attention_backward")
    assert dropout_p == 0 and rng_state.dtype is torch.uint64
    tensors = (grad_out, query, key, value, out)
    return _backward(*tensors, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, is_causal)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Any:
    """Source: flash-attention 2.8, flash_attn/flash_attn_interface.py."""
    CALLS.append("flash_attn_varlen_func")
    ends = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    assert window_size == (-1, -1) and not dropout_p and return_attn_probs
    out, lse = _forward(q, k, v, *ends, causal)
    return out, lse, None


def _flash_attn_varlen_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
    zero_tensors: bool = False,
) -> Tensor:
    """Source: as above; fills dq, dk and dv."""
    CALLS.append("_flash_attn_varlen_backward")
    assert (dropout_p, softcap, window_size_left, window_size_right) == (0, 0, -1, -1)
    assert softmax_scale == q.shape[-1] ** -0.5
    assert dq is not None and dk is not None and dv is not None and dq.is_contiguous()
    ends = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    grads = _backward(dout, q, k, v, out, softmax_lse, *ends, causal)
    for place, found in zip((dq, dk, dv), grads, strict=True):
        place.copy_(found)
    return torch.empty(0)


def package() -> dict[str, types.ModuleType]:
    """Names and modules for sys.modules."""
    interface = types.ModuleType("flash_attn.flash_attn_interface")
    interface.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    interface._flash_attn_varlen_backward = _flash_attn_varlen_backward  # type: ignore[attr-defined]
    outer = types.ModuleType("flash_attn")
    outer.flash_attn_interface = interface  # type: ignore[attr-defined]
    return {"flash_attn": outer, "flash_attn.flash_attn_interface": interface}


def _forward(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, key_ends: Tensor, most: int, most_keys: int, causal: bool
) -> tuple[Tensor, Tensor]:
    _check(query, key, value, ends, key_ends, most, most_keys)
    out, lse = blocks.attention_forward(query, key, value, ends.tolist(), key_ends.tolist(), causal)
    return out, lse.t().contiguous()


def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    ends: Tensor,
    key_ends: Tensor,
    most: int,
    most_keys: int,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(query, key, value, ends, key_ends, most, most_keys)
    assert lse.dtype is torch.float32 and lse.shape == query.shape[1::-1] and lse.is_contiguous()
    assert grad.dtype == out.dtype == query.dtype and grad.shape == out.shape == query.shape
    tensors = (grad, query, key, value, out)
    found = blocks.attention_backward(*tensors, lse.t(), ends.tolist(), key_ends.tolist(), causal)
    query_grad, key_grad, value_grad = (one.to(query.dtype) for one in found)
    return query_grad, key_grad, value_grad


def _check(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, key_ends: Tensor, most: int, most_keys: int
) -> None:
    """What mha_varlen_fwd of FlashAttention 2 checks."""
    assert query.dtype == key.dtype == value.dtype and query.dtype in (torch.bfloat16, torch.float16)
    assert query.dim() == key.dim() == 3 and key.shape == value.shape
    assert query.shape[1] % key.shape[1] == 0 and query.shape[2] == key.shape[2]
    assert query.shape[2] <= 256 and query.shape[2] % 8 == 0
    assert all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    for side, tensor, longest in ((ends, query, most), (key_ends, key, most_keys)):
        assert side.dtype is torch.int32 and side.is_contiguous() and side.device == tensor.device
        lengths = side.diff()
        assert side[0] == 0 and side[-1] == len(tensor) and longest == int(lengths.max()) and isinstance(longest, int)
    assert (ends.diff() + key_ends.diff() > 0).all()
