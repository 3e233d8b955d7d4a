"""The device's profiler: torch's own, and on NPU that of torch_npu, which knows the device."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mindspeed_ift.config.profiling import ProfileFlags
from mindspeed_ift.devices.device import Device


def start_profiler(device: Device, flags: ProfileFlags, folder: Path, name: str) -> Any:
    """Begin a trace; its ``stop()`` writes it to ``folder``.

    On CPU and CUDA that is one file, ``NAME.pt.trace.json``: a Chrome trace under the name that TensorBoard's plugin
    looks for. torch_npu makes a folder, ``NAME_..._ascend_pt``, with ``trace_view.json`` and tables in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    make = _of_npu if device.kind == "npu" else _of_torch
    profiler = make(device, flags, folder, name)(
        record_shapes=flags.profile_record_shapes,
        profile_memory=flags.profile_with_memory,
        with_stack=flags.profile_with_stack,
    )
    profiler.start()
    return profiler


def _of_torch(device: Device, flags: ProfileFlags, folder: Path, name: str) -> Callable[..., Any]:
    kinds = torch.profiler.ProfilerActivity
    activities = [kinds.CUDA] if device.asynchronous else [kinds.CPU]
    if flags.profile_with_cpu and device.asynchronous:
        activities.append(kinds.CPU)

    def write(profiler: Any) -> None:
        staging = folder / f".{name}.partial"
        profiler.export_chrome_trace(str(staging))
        os.replace(staging, folder / f"{name}.pt.trace.json")

    def make(**options: Any) -> Any:
        return torch.profiler.profile(activities=activities, on_trace_ready=write, **options)

    return make


def _of_npu(device: Device, flags: ProfileFlags, folder: Path, name: str) -> Callable[..., Any]:
    from torch_npu import profiler

    kinds = profiler.ProfilerActivity

    def make(**options: Any) -> Any:
        return profiler.profile(
            activities=[kinds.NPU, kinds.CPU] if flags.profile_with_cpu else [kinds.NPU],
            on_trace_ready=profiler.tensorboard_trace_handler(str(folder), worker_name=name),
            experimental_config=profiler._ExperimentalConfig(
                profiler_level=getattr(profiler.ProfilerLevel, flags.profile_level.capitalize())
            ),
            **options,
        )

    return make
