"""Kernels for the CPU: what torch has besides its defaults, which take MKL for fp32 and update weights one by one."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from mindspeed_ift.devices.kernels.table import Offer

_NARROW = 128
"""Numbers of all tokens below which MKL is the faster."""


def linear(tokens_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """As `reference.linear`, in fp32 by oneDNN, which serves the other types anyway.

    MKL is two to four times slower than it on processors of AMD, whose widest instructions it does not use. Without a
    gradient of its own. Of a single narrow token MKL reads the weight as fast as memory gives it, and oneDNN does not.
    """
    if tokens_TI.dtype is not torch.float32 or tokens_TI.numel() < _NARROW:
        return functional.linear(tokens_TI, weight_OI)
    return torch.ops.mkldnn._linear_pointwise(tokens_TI, weight_OI, None, "none", [], "")


def offers() -> dict[str, Offer]:
    """What this torch has."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return {
        "linear": Offer("oneDNN linear", {"linear": linear}, "" if there else "this torch has no oneDNN"),
        "adamw": Offer("fused AdamW", {"fused_adamw": True}),
    }
