"""CUDA through torch: its kernels."""

from __future__ import annotations

import torch

from mindspeed_ift.devices.kernels import cuda
from mindspeed_ift.devices.kernels.table import Kernels, with_fused


def kernels(index: int) -> tuple[Kernels, str]:
    """The table of what a device can be served with, and how the log says it."""
    return with_fused(cuda.offers(torch.cuda.get_device_capability(index), torch.device("cuda", index)))
