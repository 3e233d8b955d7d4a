"""Operators that torch_npu's own formulas reach for besides those that are called by name: they differ by its version.

Put together from the reference mathematics of the documented ones, so the same contract holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.device.contract import require
from tests.device.small_operators import OPERATORS


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy always, as the result of an operator is; dtypes by torch_npu's own numbers are not for this."""
    require(isinstance(dtype, torch.dtype), "npu_dtype_cast: a dtype by number is not known here")
    return tensor.to(dtype, copy=True)


def _dropout(tensor: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Up to torch_npu 2.7; its mask has a bit for a number, here a byte."""
    mask = torch.rand_like(tensor) >= p
    return tensor * mask / (1 - p), mask.to(torch.uint8)


def _dropout_grad(grad: Tensor, mask: Tensor, p: float) -> Tensor:
    return grad * mask / (1 - p)


def _gather_grad(grad: Tensor, size: Sequence[int], dim: int, index: Tensor, sparse_grad: bool) -> Tensor:
    require(not sparse_grad, "gradients of gather are not sparse here")
    return grad.new_zeros(size).scatter_add_(dim, index, grad)


def _repeat_grad(grad: Tensor, tensor: Tensor, repeats: int, dim: int | None = None) -> Tensor:
    if dim is None:
        return grad.view(-1, repeats).sum(1).view_as(tensor)
    dim %= tensor.dim()
    return grad.unflatten(dim, (-1, repeats)).sum(dim + 1)


def _matmul_grad(grad: Tensor, left: Tensor, right: Tensor, mask: Sequence[bool]) -> tuple[Tensor | None, ...]:
    require(left.dim() > 1 and right.dim() > 1, "the gradient of a product with a vector is not computed here")
    if right.dim() == 2:  # one product: its sums are then rounded once
        rows, columns = left.flatten(0, -2), grad.flatten(0, -2)
        of_right = rows.t() @ columns
    else:
        of_right = (left.mT @ grad).sum_to_size(right.shape)
    of_left = (grad @ right.mT).sum_to_size(left.shape)
    return of_left if mask[0] else None, of_right if mask[1] else None


def _unpermute(permuted_tokens: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """Also what its gradient shall be given."""
    return OPERATORS["npu_moe_token_unpermute"](permuted_tokens, *args, **options), permuted_tokens


def _permute_grad(
    grad: Tensor, sorted_indices: Tensor, tokens: int, dtype: torch.dtype, experts: int, padded_mode: bool = False
) -> Tensor:
    like = torch.empty(tokens, grad.shape[1], dtype=dtype)
    indices = torch.empty(tokens, experts, dtype=torch.int64)
    return OPERATORS["npu_moe_token_permute_grad"](like, grad, indices, sorted_indices, padded_mode)


def _unpermute_grad(
    grad: Tensor,
    sorted_indices: Tensor,
    copies: int,
    dtype: torch.dtype,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
    permuted_tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    require(permuted_tokens is not None, "the gradient of weights needs permuted_tokens")
    assert permuted_tokens is not None
    require(len(permuted_tokens) == copies and permuted_tokens.dtype == dtype, "permuted_tokens are others")
    gradients = OPERATORS["npu_moe_token_unpermute_grad"]
    return gradients(permuted_tokens, grad, sorted_indices, probs, padded_mode, restore_shape)


FORMULAS: dict[str, Callable[..., Any]] = {
    "matmul_backward": _matmul_grad,
    "npu_dtype_cast": _cast,
    "npu_dtype_cast_backward": _cast,
    "_npu_dtype_cast": _cast,
    "_npu_dtype_cast_backward": _cast,
    "_npu_moe_token_unpermute": _unpermute,
    "_npu_dropout": _dropout,
    "npu_dropout_backward": _dropout_grad,
    "npu_gather_backward": _gather_grad,
    "repeat_interleave_backward_int": _repeat_grad,
    "npu_moe_token_permute_grad_v2": _permute_grad,
    "npu_moe_token_unpermute_grad_v2": _unpermute_grad,
}
"""Operator of torch or torch_npu without its namespace -> function of tensors on the host."""
