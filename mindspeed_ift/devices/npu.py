"""Ascend through torch_npu: its environment, whether it is there, its kernels, and what Megatron-core must be told.

Nothing of the vendor's MindSpeed is needed or imported.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from mindspeed_ift.config.errors import RunError
from mindspeed_ift.devices import without_cuda
from mindspeed_ift.devices.kernels import npu
from mindspeed_ift.devices.kernels.table import Kernels, with_fused

ENVIRONMENT = {
    "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",  # rows of many lengths would leave memory in pieces
    "TASK_QUEUE_ENABLE": "2",  # what the host has to do for an operator runs beside the device
    "CPU_AFFINITY_CONF": "1",  # the threads of a process stay on the cores next to its device
    "HCCL_CONNECT_TIMEOUT": "1800",  # seconds in which ranks find each other: some read large files first
    "TORCH_NPU_DEVICE_CAPABILITY": "8.0",  # torch.distributed asks what it takes for CUDA; None would end a broadcast
}
"""Read by torch_npu and CANN when their runtime starts; what the user has set stays."""


UNUSED = ("accelerate", "peft", "transformers", "trl")
"""Libraries whose trainers transfer_to_npu imports where they are installed, to let them see that there is no CUDA. Of these
only the tokenizers of transformers are used here, and the import takes as long as half of a start."""


def set_environment() -> bool:
    """Set what is unset of `ENVIRONMENT`, here and for processes started from here; False without torch_npu: nothing is."""
    if importlib.util.find_spec("torch_npu") is None:
        return False
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return True


def available() -> bool:
    """Whether torch_npu is installed and finds a device; sets `ENVIRONMENT` before it starts.

    Raises:
        RunError: it is installed, but cannot be imported.
    """
    if not set_environment():
        return False
    try:
        import torch_npu  # noqa: F401 - registers the device type
    except Exception as error:  # a library that is not found, a version that does not fit, or what CANN's check raises
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise RunError(
            f"torch_npu is installed but cannot be imported ({reason}); source CANN's set_env.sh and install the "
            "torch-npu of this torch, or set MINDSPEED_IFT_DEVICE=cpu"
        ) from error
    return torch.get_device_module("npu").is_available()


def kernels(_: int) -> tuple[Kernels, str]:
    """The table of torch_npu's kernels, and how the log says it."""
    return with_fused(npu.offers())


def prepare() -> None:
    """Make ``torch.cuda`` mean the NPU, whose torch has no compiler. Call before Megatron-core's first import.

    Raises:
        RunError: Megatron-core was imported before; its modules hold names of the unchanged torch.
    """
    if "megatron.core" in sys.modules:
        raise RunError("megatron.core was imported before mindspeed_ift.mcore; import mindspeed_ift.mcore first")
    # It warns of what it does, whatever the filters, and changes these.
    with warnings.catch_warnings(record=True), _without(UNUSED):
        from torch_npu.contrib import transfer_to_npu  # noqa: F401 - importing it redirects torch.cuda
    share_generators()
    without_cuda.import_uncompiled()
    speak_of_cuda()


@contextlib.contextmanager
def _without(packages: tuple[str, ...]) -> Iterator[None]:
    """Within, whoever asks for the version of one of the packages is told that it is not installed."""
    version = importlib.metadata.version

    def version_of(name: str) -> str:
        if name in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    importlib.metadata.version = version_of
    try:
        yield
    finally:
        importlib.metadata.version = version


def share_generators() -> None:
    """Let ``torch.cuda.default_generators``, which Megatron seeds, be the NPU's as soon as it has started.

    The transfer of torch_npu does so itself only in later versions (2.13 does, 2.7.1 does not).
    """
    module = torch.get_device_module("npu")
    module._lazy_call(lambda: setattr(torch.cuda, "default_generators", module.default_generators))


def speak_of_cuda() -> None:
    """Answer two questions as those who ask of torch.cuda expect it.

    * ``Tensor.type()`` says torch.cuda where it said torch.npu: Megatron's optimizers sort parameters by comparing it
      with 'torch.cuda.FloatTensor', and refuse all others.
    * ``torch.cuda.get_device_capability()`` is (0, 0), which no CUDA device has, instead of None: ``dist.broadcast`` takes
      its first number of every tensor that says it is on a CUDA device, as those of a redirected NPU do.
    """
    kind = torch.Tensor.type

    @functools.wraps(kind)
    def type_of(self: torch.Tensor, dtype: Any = None, *args: Any, **options: Any) -> Any:
        if dtype is None:
            return kind(self).replace("torch.npu.", "torch.cuda.", 1)
        return kind(self, dtype, *args, **options)

    torch.Tensor.type = type_of  # type: ignore[method-assign]
    torch.cuda.get_device_capability = lambda device=None: (0, 0)
