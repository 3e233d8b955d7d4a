"""Kernels for CUDA without extensions of ours: flash attention, plain torch compiled into fused kernels, a fused AdamW.

Each is chosen once, when the process asks for its device; `flash` has the attention, or `flex`.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from mindspeed_ift.devices.kernels import flash, flex, reference
from mindspeed_ift.devices.kernels.table import Kernel, Offer
from mindspeed_ift.devices.transfer import upload

_FLASH_FROM = (8, 0)  # compute capability, of grouped_mm too
_COMPILED_FROM = (7, 0)  # Triton's least
_BACKEND = "inductor"
_NO_FLASH = "this torch has no varlen_attn, flash-attn is not installed"

# Shapes: S positions, B rows, T tokens, H the last dimension, N heads, D head size, P positions, V or
# R rows of a weight.


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled at its first call for the sizes of its last dimensions, and for any number of tokens."""
    return torch.compile(function, backend=_BACKEND, dynamic=False)


def _of_any_length(tensor: Tensor) -> Tensor:
    """Tell the compiler that the first size changes from call to call."""
    torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return tensor


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """As `reference.rms_norm`, in one kernel."""
    tokens = _of_any_length(hidden.flatten(0, -2))
    return _compiled(reference.rms_norm)(tokens, weight, epsilon).view(hidden.shape)


def swiglu(gate_and_up: Tensor) -> Tensor:
    """As `reference.swiglu`, in one kernel; keeps its input alone for the backward pass. An expert may have no token."""
    if not gate_and_up.numel():
        return reference.swiglu(gate_and_up)
    tokens = _of_any_length(gate_and_up.flatten(0, -2))
    return _compiled(reference.swiglu)(tokens).unflatten(0, gate_and_up.shape[:-1])


def rotary(tensor_SBND: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """As `reference.rotary`, in one kernel."""
    return reference.rotate(tensor_SBND, cosine, sine, _turn)


def _turn(tensor_SBND: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    turns = (tensor.expand(*tensor_SBND.shape[:2], -1, -1) for tensor in (cosine, sine))  # of each row, or of all
    tokens = (_of_any_length(tensor.flatten(0, 1)) for tensor in (tensor_SBND, *turns))
    return _compiled(reference.turn)(*tokens).view(tensor_SBND.shape)


def grouped_matmul(tokens_TI: Tensor, weights_EIO: Tensor, counts: Sequence[int]) -> Tensor:
    """As `reference.grouped_matmul`, in one kernel, which takes bf16 alone and rows of whole 16 bytes."""
    narrow = tokens_TI.dtype is torch.bfloat16 and not any(size % 8 for size in weights_EIO.shape[1:])
    if not narrow or not len(tokens_TI):
        return reference.grouped_matmul(tokens_TI, weights_EIO, counts)
    ends = upload(torch.tensor(list(accumulate(counts)), dtype=torch.int32), tokens_TI.device)
    return functional.grouped_mm(tokens_TI, weights_EIO, offs=ends)


def add_product(sum_RH: Tensor, left_PR: Tensor, right_PH: Tensor) -> None:
    """As `reference.add_product`; of 16 bits to fp32 in one kernel, and nothing is rounded between."""
    if sum_RH.dtype is not torch.float32 or left_PR.dtype is torch.float32:
        reference.add_product(sum_RH, left_PR, right_PH)
    else:
        torch.ops.aten.addmm.dtype_out(sum_RH, left_PR.t(), right_PH, torch.float32, out=sum_RH)


def softmax_sums(logits_PV: Tensor, columns_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.softmax_sums`, in one kernel that reads the logits."""
    return _compiled(_sums)(_of_any_length(logits_PV), _of_any_length(columns_P))


def softmax_gradient(
    logits_PV: Tensor, sums_P: Tensor, weights_P: Tensor, columns_P: Tensor, chosen_P: Tensor
) -> Tensor:
    """As `reference.softmax_gradient`, in one kernel that reads the logits and writes the gradient."""
    tensors = (logits_PV, sums_P, weights_P, columns_P, chosen_P)
    return _compiled(_gradient)(*map(_of_any_length, tensors))


def _sums(logits_PV: Tensor, columns_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide = logits_PV.float()
    largest = wide.amax(1)
    sums = (wide - largest[:, None]).exp().sum(1).log() + largest
    return torch.where(_is_column(logits_PV, columns_P), wide, 0.0).sum(1), largest, sums


def _gradient(logits_PV: Tensor, sums_P: Tensor, weights_P: Tensor, columns_P: Tensor, chosen_P: Tensor) -> Tensor:
    shares = (logits_PV.float() - sums_P[:, None]).exp() * weights_P[:, None]
    chosen = torch.where(_is_column(logits_PV, columns_P), chosen_P[:, None], 0.0)
    return (shares - chosen).to(logits_PV.dtype)


def _is_column(logits_PV: Tensor, columns_P: Tensor) -> Tensor:
    """A gather or scatter would be a kernel of its own."""
    return torch.arange(logits_PV.shape[1], device=logits_PV.device) == columns_P[:, None]


def _below(wanted: tuple[int, int], capability: tuple[int, int]) -> str:
    """Why a device cannot run what wants this compute capability, or empty."""
    return "" if capability >= wanted else "compute capability {}.{} is below {}.{}".format(*capability, *wanted)


def _why_not_grouped(capability: tuple[int, int]) -> str:
    if not hasattr(functional, "grouped_mm"):
        return "this torch has no grouped_mm"
    return _below(_FLASH_FROM, capability)


def _why_not_added(device: torch.device) -> str:
    """The operator is there from torch 2.8 on, but takes such a sum in later ones only."""
    with contextlib.suppress(Exception):  # whatever it says no with
        total, factor = torch.ones(16, 16, device=device), torch.eye(16, dtype=torch.bfloat16, device=device)
        add_product(total, factor, factor)
        if total.sum() == 16 * 17:
            return ""
    return "this torch does not add products of 16 bits to sums of 32"


def _liger_rms_norm() -> Kernel | None:
    """Liger Kernel's RMSNorm, which rounds where Qwen3's does ("llama"); None where the package is not installed."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """As `reference.rms_norm`."""
        return LigerRMSNormFunction.apply(hidden, weight, epsilon, 0.0, "llama", False)

    return rms_norm


def offers(capability: tuple[int, int], device: torch.device) -> dict[str, Offer]:
    """What this torch and the packages beside it have for a device.

    Args:
        capability: the device's compute capability.
        device: where what no version tells is tried.
    """
    liger = _liger_rms_norm()
    compiled: dict[str, Any] = {"missing": _why_not_compiled(capability)}
    return {
        "attention": _attention(capability),
        "rms_norm": Offer("compiled rms_norm", {"rms_norm": rms_norm}, **compiled)
        if liger is None
        else Offer("Liger's rms_norm", {"rms_norm": liger}, **compiled),
        "swiglu": Offer("swiglu", {"swiglu": swiglu}, **compiled),
        "rotary": Offer("rotary", {"rotary": rotary}, **compiled),
        "grouped_matmul": Offer("grouped_mm", {"grouped_matmul": grouped_matmul}, _why_not_grouped(capability)),
        "linear": Offer("products added in fp32", {"add_product": add_product}, _why_not_added(device)),
        "adamw": Offer("fused AdamW", {"fused_adamw": True}),
        "cross_entropy": Offer(
            "cross_entropy", {"softmax_sums": softmax_sums, "softmax_gradient": softmax_gradient}, **compiled
        ),
    }


def _attention(capability: tuple[int, int]) -> Offer:
    """torch's where it has one, else flash-attn's, else FlexAttention, else the reason why scaled dot products serve,
    segment by segment."""
    missing = _below(_FLASH_FROM, capability)
    found = flash.of_torch() if torch.backends.cuda.is_flash_attention_available() else None
    found = found or flash.of_flash_attn()
    if found is not None:
        names = ("attention", "attention_forward", "attention_backward")
        return Offer(found.label, {name: getattr(found, name) for name in names}, missing)
    if not missing and not flex.there():
        missing = f"{_NO_FLASH}, and it has no FlexAttention"
    elif not missing and _why_not_compiled(capability):
        missing = f"{_NO_FLASH}, and for FlexAttention {_why_not_compiled(capability)}"
    label = f"FlexAttention, parts of a ring in plain torch ({_NO_FLASH})"
    return Offer(label, {"attention": flex.attention}, missing)


def _why_not_compiled(capability: tuple[int, int]) -> str:
    there = importlib.util.find_spec("triton") is not None
    return _below(_COMPILED_FROM, capability) or ("" if there else "torch.compile needs triton")
