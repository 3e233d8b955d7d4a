"""Memory of the emulated device as the host sees it: the same bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def is_on_device(value: object) -> bool:
    """Whether it is a tensor of the NPU."""
    return isinstance(value, Tensor) and value.device.type == "npu"


def on_host(tensor: Tensor) -> Tensor:
    """A CPU tensor in the same memory, which ``tensor`` owns: use it no longer than that."""
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    borrowed = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), torch.device("cpu"), storage.nbytes())
    return torch.empty(0, dtype=tensor.dtype).set_(borrowed, tensor.storage_offset(), tensor.shape, tensor.stride())


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a CPU tensor on the device, laid out alike."""
    if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride())):
        tensor = tensor.contiguous()  # several numbers in one place cannot be written
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if tensor.numel():
        on_host(made).copy_(tensor)
    return made
