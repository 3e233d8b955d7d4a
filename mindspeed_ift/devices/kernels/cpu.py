"""Kernels for the CPU: what torch has besides its defaults, which take MKL for fp32 and update weights one by one."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from mindspeed_ift.devices.kernels import reference
from mindspeed_ift.devices.kernels.table import Offer

_NARROW = 128
"""Numbers of all tokens below which MKL is the faster."""
_DEEP = 512
"""Products to be summed from which on oneDNN is the faster, though it cannot add to what is there."""


def linear(tokens_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """As `reference.linear`, in fp32 by oneDNN, which serves the other types anyway.

    MKL is two to four times slower than it on processors of AMD, whose widest instructions it does not use. Without a
    gradient of its own. Of a single narrow token MKL reads the weight as fast as memory gives it, and oneDNN does not.
    """
    if tokens_TI.dtype is not torch.float32 or tokens_TI.numel() < _NARROW:
        return functional.linear(tokens_TI, weight_OI)
    return torch.ops.mkldnn._linear_pointwise(tokens_TI, weight_OI, None, "none", [], "")


def add_product(sum_RH: Tensor, left_PR: Tensor, right_PH: Tensor) -> None:
    """As `reference.add_product`, in fp32 by oneDNN where that is the faster."""
    if sum_RH.dtype is left_PR.dtype is torch.float32 and len(left_PR) >= _DEEP:
        sum_RH += linear(left_PR.t(), right_PH.t())
    else:
        reference.add_product(sum_RH, left_PR, right_PH)


def offers() -> dict[str, Offer]:
    """What this torch has."""
    functions = {"linear": linear, "add_product": add_product}
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return {
        "linear": Offer("oneDNN linear", functions, "" if there else "this torch has no oneDNN"),
        "adamw": Offer("fused AdamW", {"fused_adamw": True}),
    }
