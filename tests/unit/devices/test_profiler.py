"""Which profiler serves which device, and what it is told; torch's own is tried in tests/unit/training."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_ift.config.profiling import ProfileFlags
from mindspeed_ift.devices.device import Device, current
from mindspeed_ift.devices.profiler import start_profiler

CLOSE = ProfileFlags(
    profile_with_stack=True, profile_with_memory=True, profile_record_shapes=True, profile_level="level1"
)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a profiler is made with: of torch, or of a torch_npu that is none."""
    current()  # is chosen before there seems to be a torch_npu
    options: list[dict[str, Any]] = []

    class Profiler:
        def __init__(self, **given: Any) -> None:
            options.append(given)

        def start(self) -> None:
            options[-1]["started"] = True

    monkeypatch.setattr(torch.profiler, "profile", Profiler)
    module, inner = types.ModuleType("torch_npu"), types.ModuleType("torch_npu.profiler")
    vars(inner).update(
        profile=Profiler,
        ProfilerActivity=types.SimpleNamespace(CPU="host", NPU="device"),
        ProfilerLevel=types.SimpleNamespace(Level0=0, Level1=1, Level2=2),
        _ExperimentalConfig=lambda profiler_level: ("level", profiler_level),
        tensorboard_trace_handler=lambda folder, worker_name: ("writes", folder, worker_name),
    )
    module.profiler = inner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_npu", module)
    monkeypatch.setitem(sys.modules, "torch_npu.profiler", inner)
    return options


def device(kind: str) -> Device:
    return dataclasses.replace(current(), kind=kind)


def test_torch_npu_serves_its_own_device(told: list[dict[str, Any]], tmp_path: Path) -> None:
    start_profiler(device("npu"), CLOSE, tmp_path / "profile", "rank_3")
    (given,) = told
    assert given == {
        "activities": ["device", "host"],
        "on_trace_ready": ("writes", str(tmp_path / "profile"), "rank_3"),
        "experimental_config": ("level", 1),
        "record_shapes": True,
        "profile_memory": True,
        "with_stack": True,
        "started": True,
    }
    assert (tmp_path / "profile").is_dir()
    start_profiler(device("npu"), ProfileFlags(profile_with_cpu=False), tmp_path, "rank_3")
    assert told[1]["activities"] == ["device"] and told[1]["experimental_config"] == ("level", 0)


@pytest.mark.parametrize(
    ("kind", "with_host", "expected"),
    [("cpu", True, {"CPU"}), ("cpu", False, {"CPU"}), ("cuda", True, {"CPU", "CUDA"}), ("cuda", False, {"CUDA"})],
)
def test_torch_serves_the_others(
    told: list[dict[str, Any]], tmp_path: Path, kind: str, with_host: bool, expected: set[str]
) -> None:
    start_profiler(device(kind), dataclasses.replace(CLOSE, profile_with_cpu=with_host), tmp_path, "rank_0")
    assert {one.name for one in told[0]["activities"]} == expected
    assert (told[0]["record_shapes"], told[0]["profile_memory"], told[0]["with_stack"]) == (True, True, True)
