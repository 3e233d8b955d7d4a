"""Which device this process runs on, and the answers the rest of the code needs from it."""

from __future__ import annotations

import functools
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.devices import cuda, npu
from mindspeed_ift.devices.kernels import cpu
from mindspeed_ift.devices.kernels.table import Kernels, with_fused
from mindspeed_ift.devices.peaks import peak_operations


@dataclass(frozen=True)
class Device:
    """One accelerator (or the CPU) as this process sees it.

    Attributes:
        kind: ``"npu"``, ``"cuda"`` or ``"cpu"``.
        index: number of the device on this machine; 0 on CPU.
        backend: collective backend of torch.distributed.
        reason: why this device was chosen, for the log.
        kernels: the functions that serve.
        kernel_notice: which kernels serve and why, for the log.
    """

    kind: str
    index: int
    backend: str
    reason: str
    kernels: Kernels
    kernel_notice: str

    @property
    def torch_device(self) -> torch.device:
        """Where tensors of this process live."""
        return torch.device("cpu") if self.kind == "cpu" else torch.device(self.kind, self.index)

    @property
    def asynchronous(self) -> bool:
        """Whether work is queued, so that timings need `synchronize`."""
        return self.kind != "cpu"

    def synchronize(self) -> None:
        """Wait until all queued work is done."""
        if self.asynchronous:
            self._module().synchronize()

    def peak_memory(self) -> int:
        """Bytes: the most this process held on the device (on CPU: its largest resident size)."""
        if self.asynchronous:
            return self._module().max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def peak_operations(self) -> float | None:
        """Dense bf16 operations a second that the data sheet promises; None where it is not known (on CPU)."""
        return peak_operations(self._module().get_device_name(self.index)) if self.asynchronous else None

    def random_state(self) -> torch.Tensor:
        """State of the device's random generator, uint8 on the host."""
        return self._module().get_rng_state() if self.asynchronous else torch.get_rng_state()

    def set_random_state(self, state: torch.Tensor) -> None:
        """Restore what `random_state` returned."""
        if self.asynchronous:
            self._module().set_rng_state(state)
        else:
            torch.set_rng_state(state)

    def be_deterministic(self) -> None:
        """Give the same bits for the same input from now on, in this process, or raise where an operation cannot.

        Call before the first collective and the first matrix product: libraries read their settings then. A setting that
        the environment has already is left as it is.
        """
        for name, value in SETTINGS_OF_DETERMINISM[self.kind].items():
            os.environ.setdefault(name, value)
        torch.use_deterministic_algorithms(True)

    def _module(self) -> Any:
        return torch.get_device_module(self.kind)


SETTINGS_OF_DETERMINISM: dict[str, dict[str, str]] = {
    "npu": {"HCCL_DETERMINISTIC": "true", "LCCL_DETERMINISTIC": "1", "CLOSE_MATMUL_K_SHIFT": "1"},
    "cuda": {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring"},
    "cpu": {},
}
"""Kind of device -> what its libraries need in the environment to sum in one order always."""


def _of_cpu(_: int) -> tuple[Kernels, str]:
    return with_fused(cpu.offers())


KERNELS: dict[str, Callable[[int], tuple[Kernels, str]]] = {"npu": npu.kernels, "cuda": cuda.kernels, "cpu": _of_cpu}
"""Kind of device -> the kernels of the device with that index, and how the log says it."""


@functools.lru_cache(maxsize=1)
def current() -> Device:
    """The device of this process: NPU, else CUDA, else CPU; ``MINDSPEED_IFT_DEVICE`` overrides.

    The index is ``LOCAL_RANK`` modulo the number of devices.

    Raises:
        UserError: the override names a device that is not there.
    """
    wanted = os.environ.get("MINDSPEED_IFT_DEVICE", "")
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    if wanted in ("", "npu") and npu.available():
        index = rank % torch.get_device_module("npu").device_count()
        return Device("npu", index, "hccl", "torch_npu finds an NPU", *KERNELS["npu"](index))
    if wanted in ("", "cuda") and torch.cuda.is_available():
        index = rank % torch.cuda.device_count()
        return Device("cuda", index, "nccl", "torch finds a CUDA device", *KERNELS["cuda"](index))
    if wanted not in ("", "cpu"):
        raise UserError(
            f"MINDSPEED_IFT_DEVICE={wanted}, but torch finds no such device; unset it to take what is there"
        )
    reason = "MINDSPEED_IFT_DEVICE=cpu" if wanted else "no NPU and no CUDA device"
    return Device("cpu", 0, "gloo", reason, *KERNELS["cpu"](0))


def count() -> int:
    """Devices of the current kind on this machine; 1 on CPU."""
    kind = current().kind
    return 1 if kind == "cpu" else torch.get_device_module(kind).device_count()


def set_environment(processes: int | None = None) -> None:
    """Set the defaults of environment variables that a device's runtime reads, for processes started from here.

    Where torch imports the device's module by itself, it does so before such a process comes to say anything.

    Args:
        processes: that will share this machine's cores; each gets as many threads as cores come to it. torchrun would
            give one thread to each of several. None: not known.
    """
    npu.set_environment()
    if processes is not None:
        threads = len(os.sched_getaffinity(0)) // processes
        os.environ.setdefault("OMP_NUM_THREADS", str(max(threads, 1)))


def prepare(device: Device) -> None:
    """Make ``torch.cuda`` mean ``device`` for Megatron-core. Call before its first import (`mcore` does)."""
    if device.kind == "cpu":
        from mindspeed_ift.devices import without_cuda

        without_cuda.install()
    elif device.kind == "npu":
        npu.prepare()
    if device.asynchronous:
        device._module().set_device(device.index)
