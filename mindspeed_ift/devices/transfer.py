"""From the host to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, for which the host does not wait; on the CPU the tensor itself.

    CUDA copies beside the host's work from pinned memory only.
    """
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
