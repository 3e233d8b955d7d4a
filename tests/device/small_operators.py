"""The operators besides attention on CPU tensors by the textbook, within the contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.device import contract
from tests.device.recording import record


def _rms_norm(hidden: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    contract.rms_norm(hidden, gamma)
    record("npu_rms_norm", "last dimension", hidden, gamma)
    wide = hidden.double()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return (wide * scale * gamma.double()).to(hidden.dtype), scale.float()


def _rms_norm_backward(grad: Tensor, hidden: Tensor, gamma: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    contract.rms_norm(hidden, gamma)
    contract.require(grad.shape == hidden.shape and grad.dtype == hidden.dtype, "dy is not like the input")
    record("npu_rms_norm_backward", "last dimension", hidden, gamma)
    normal = hidden.double() * scale
    inner = grad.double() * gamma.double()
    grad_hidden = scale * (inner - normal * (inner * normal).mean(-1, keepdim=True))
    return grad_hidden.to(hidden.dtype), (grad.double() * normal).flatten(0, -2).sum(0).float()


class _DifferentiableNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, gamma: Tensor, epsilon: float, _: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            out, scale = torch.ops.npu.npu_rms_norm(hidden, gamma, epsilon)
        ctx.save_for_backward(hidden, gamma, scale)
        ctx.mark_non_differentiable(scale)
        return out, scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        return (*torch.ops.npu.npu_rms_norm_backward(grad.contiguous(), *ctx.saved_tensors), None, None)


def _swiglu(gate_and_up: Tensor, dim: int = -1) -> Tensor:
    contract.swiglu(gate_and_up, dim)
    record("npu_swiglu", "last dimension", gate_and_up)
    gate, up = gate_and_up.double().chunk(2, dim)
    return (gate * gate.sigmoid() * up).to(gate_and_up.dtype)


def _swiglu_backward(grad: Tensor, gate_and_up: Tensor, dim: int = -1) -> Tensor:
    contract.swiglu(gate_and_up, dim)
    contract.require(grad.dtype == gate_and_up.dtype, "the gradient is of another dtype")
    record("npu_swiglu_backward", "last dimension", gate_and_up)
    gate, up = gate_and_up.double().chunk(2, dim)
    slope = gate.sigmoid()
    of_gate = grad.double() * up * slope * (1 + gate * (1 - slope))
    return torch.cat([of_gate, grad.double() * gate * slope], dim).to(gate_and_up.dtype)


class _DifferentiableSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor, dim: int, _: Any) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        ctx.dim = dim
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.npu.npu_swiglu(gate_and_up, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return torch.ops.npu.npu_swiglu_backward(grad.contiguous(), *ctx.saved_tensors, ctx.dim), None, None


def _rotary_mul(
    tensor: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> Tensor:
    layout = contract.rotary(tensor, r1, r2, rotary_mode, rotate)
    record("npu_rotary_mul", layout, tensor)
    wide, cosine, sine = (one.double() for one in (tensor, r1, r2))
    first, second = wide.chunk(2, -1)
    return (wide * cosine + torch.cat([-second, first], -1) * sine).to(tensor.dtype)


def _rotary_mul_backward(
    grad: Tensor, tensor: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half"
) -> tuple[Tensor, Tensor, Tensor]:
    layout = contract.rotary(tensor, r1, r2, rotary_mode, None)
    contract.require(grad.shape == tensor.shape and grad.dtype == tensor.dtype, "the gradient is not like the input")
    record("npu_rotary_mul_backward", layout, tensor)
    wide = grad.double()
    first, second = (wide * r2.double()).chunk(2, -1)
    # Cosines and sines are no parameters: what the operator gives for them is not looked at.
    back = wide * r1.double() + torch.cat([second, -first], -1)
    return back.to(tensor.dtype), torch.zeros_like(r1), torch.zeros_like(r2)


class _DifferentiableRotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, r1: Tensor, r2: Tensor, *_: Any) -> Tensor:
        contract.require(not r1.requires_grad and not r2.requires_grad, "cosines and sines have no gradient here")
        ctx.save_for_backward(tensor, r1, r2)
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.npu.npu_rotary_mul(tensor, r1, r2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        back = torch.ops.npu.npu_rotary_mul_backward(grad.contiguous(), *ctx.saved_tensors)[0]
        return back, None, None, None, None, None


def _grouped_matmul(
    x: Sequence[Tensor],
    weight: Sequence[Tensor],
    *,
    group_list: Tensor | None = None,
    split_item: int = 0,
    group_type: int | None = None,
    group_list_type: int = 0,
    **others: Any,
) -> list[Tensor]:
    contract.require(not any(value for value in others.values()), "no bias, no quantization")
    contract.grouped_matmul(x, weight, group_list, split_item, group_type, group_list_type)
    left, right = x[0].double(), weight[0].double()
    assert group_list is not None
    starts = [0, *group_list.tolist()]
    slices = [slice(start, stop) for start, stop in zip(starts, starts[1:])]
    if group_type == 0:
        record("npu_grouped_matmul", "groups of rows", x[0], group_list)
        out = torch.cat([left[rows] @ matrix for rows, matrix in zip(slices, right)])
    else:
        record("npu_grouped_matmul", "groups of columns", x[0], group_list)
        out = torch.stack([left[:, columns] @ right[columns] for columns in slices])
    return [out.to(x[0].dtype)]


def _permute(
    tokens: Tensor, indices: Tensor, num_out_tokens: int | None = None, padded_mode: bool = False
) -> tuple[Tensor, Tensor]:
    contract.permute(tokens, indices, num_out_tokens, padded_mode)
    record("npu_moe_token_permute", "[tokens, experts of a token]", tokens, indices)
    order = indices.flatten().argsort(stable=True)
    return tokens[order // indices.shape[1]], order.argsort().int()


def _permute_grad(
    tokens: Tensor, grad: Tensor, indices: Tensor, sorted_indices: Tensor, padded_mode: bool = False
) -> Tensor:
    contract.permute(tokens, indices, None, padded_mode)
    record("npu_moe_token_permute_grad", "[tokens, experts of a token]", tokens, indices)
    copies = grad.double()[sorted_indices.long()].unflatten(0, (len(tokens), -1))
    return copies.sum(1).to(tokens.dtype)


class _DifferentiablePermute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, indices: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            ordered, places = torch.ops.npu.npu_moe_token_permute(tokens, indices)
        ctx.save_for_backward(tokens, indices, places)
        ctx.mark_non_differentiable(places)
        return ordered, places

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        tokens, indices, places = ctx.saved_tensors
        back = torch.ops.npu.npu_moe_token_permute_grad(tokens, grad.contiguous(), indices, places)
        return back, None, None, None, None


def _unpermute(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
) -> Tensor:
    contract.unpermute(permuted_tokens, sorted_indices, probs, padded_mode, restore_shape)
    record("npu_moe_token_unpermute", "[tokens, experts of a token]", permuted_tokens, sorted_indices)
    assert probs is not None
    copies = permuted_tokens.double()[sorted_indices.long()].unflatten(0, tuple(probs.shape))
    return (copies * probs.double()[..., None]).sum(1).to(permuted_tokens.dtype)


def _unpermute_grad(
    permuted_tokens: Tensor,
    grad: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    contract.unpermute(permuted_tokens, sorted_indices, probs, padded_mode, restore_shape)
    record("npu_moe_token_unpermute_grad", "[tokens, experts of a token]", permuted_tokens, sorted_indices)
    assert probs is not None
    copies = (grad.double()[:, None] * probs.double()[..., None]).flatten(0, 1)
    back = torch.empty_like(copies).index_copy_(0, sorted_indices.long(), copies)
    of_probs = (grad.double()[:, None] * permuted_tokens.double()[sorted_indices.long()].view(*probs.shape, -1)).sum(-1)
    return back.to(permuted_tokens.dtype), of_probs.to(probs.dtype)


class _DifferentiableUnpermute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, copies: Tensor, places: Tensor, probs: Tensor, *_: Any) -> Tensor:
        ctx.save_for_backward(copies, places, probs)
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.npu.npu_moe_token_unpermute(copies, places, probs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        copies, places, probs = ctx.saved_tensors
        back, of_probs = torch.ops.npu.npu_moe_token_unpermute_grad(copies, grad.contiguous(), places, probs)
        return back, None, of_probs, None, None, None


OPERATORS: dict[str, Callable[..., Any]] = {
    "npu_rms_norm": _rms_norm,
    "npu_rms_norm_backward": _rms_norm_backward,
    "npu_swiglu": _swiglu,
    "npu_swiglu_backward": _swiglu_backward,
    "npu_rotary_mul": _rotary_mul,
    "npu_rotary_mul_backward": _rotary_mul_backward,
    "npu_grouped_matmul": _grouped_matmul,
    "npu_moe_token_permute": _permute,
    "npu_moe_token_permute_grad": _permute_grad,
    "npu_moe_token_unpermute": _unpermute,
    "npu_moe_token_unpermute_grad": _unpermute_grad,
}
DIFFERENTIABLE = {
    "npu_rms_norm": (_rms_norm, _DifferentiableNorm),
    "npu_swiglu": (_swiglu, _DifferentiableSwiGLU),
    "npu_rotary_mul": (_rotary_mul, _DifferentiableRotary),
    "npu_moe_token_permute": (_permute, _DifferentiablePermute),
    "npu_moe_token_unpermute": (_unpermute, _DifferentiableUnpermute),
}
