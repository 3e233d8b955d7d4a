"""Which device is chosen and why; what it answers on CPU."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import pytest
import torch

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.devices import device, npu


@pytest.fixture(autouse=True)
def _ask_again() -> Iterator[None]:
    """`current` remembers its answer for the life of a process."""
    device.current.cache_clear()
    yield
    device.current.cache_clear()


def without_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINDSPEED_IFT_DEVICE", raising=False)
    monkeypatch.setattr(npu, "available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("kind", "setting"), [("cpu", None), ("cuda", "CUBLAS_WORKSPACE_CONFIG"), ("npu", "HCCL_DETERMINISTIC")]
)
def test_an_operation_without_one_order_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: str, setting: str | None
) -> None:
    """The libraries are told too, unless the user has told them."""
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    for name in (name for settings in device.SETTINGS_OF_DETERMINISM.values() for name in settings):
        if name != "NCCL_ALGO":
            monkeypatch.setenv(name, "")  # so that it is as it was afterwards
            monkeypatch.delenv(name)
    found = dataclasses.replace(device.Device("cpu", 0, "gloo", "", *device.KERNELS["cpu"](0)), kind=kind)
    try:
        found.be_deterministic()
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))
        assert os.environ["NCCL_ALGO"] == "Tree" and (setting is None or os.environ[setting])
        others = {"CUBLAS_WORKSPACE_CONFIG", "HCCL_DETERMINISTIC"} - {setting}
        assert not others & os.environ.keys()
    finally:
        torch.use_deterministic_algorithms(False)
    torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))


def test_the_cpu_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    without_accelerators(monkeypatch)
    found = device.current()
    assert (found.kind, found.index, found.backend) == (
        "cpu",
        0,
        "gloo",
    ) and found.reason == "no NPU and no CUDA device"
    assert found.torch_device == torch.device("cpu") and not found.asynchronous and device.count() == 1
    assert found.peak_memory() > 10 * 2**20
    found.synchronize()


def test_the_random_state_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    without_accelerators(monkeypatch)
    state = device.current().random_state()
    drawn = torch.rand(3)
    device.current().set_random_state(state)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize(("ascend", "kind", "backend"), [(True, "npu", "hccl"), (False, "cuda", "nccl")])
def test_npu_before_cuda_before_cpu(monkeypatch: pytest.MonkeyPatch, ascend: bool, kind: str, backend: str) -> None:
    """Each process takes the device of its local rank, and starts over when there are fewer."""
    without_accelerators(monkeypatch)
    monkeypatch.setattr(npu, "available", lambda: ascend)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch, "get_device_module", lambda _: torch.cuda)
    monkeypatch.setenv("LOCAL_RANK", "6")
    found = device.current()
    assert (found.kind, found.index, found.backend) == (kind, 2, backend) and found.asynchronous
    assert ascend or found.kernels.fused_adamw and "fused AdamW" in found.kernel_notice


@pytest.mark.parametrize(
    ("processes", "given", "threads"),
    [(1, None, "8"), (3, None, "2"), (16, None, "1"), (2, "3", "3"), (None, None, None)],
)
def test_processes_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, processes: int | None, given: str | None, threads: str | None
) -> None:
    monkeypatch.setattr(npu, "set_environment", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    device.set_environment(processes)
    assert os.environ.get("OMP_NUM_THREADS") == threads


@pytest.mark.parametrize("wanted", ["npu", "cuda", "tpu"])
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    without_accelerators(monkeypatch)
    monkeypatch.setenv("MINDSPEED_IFT_DEVICE", wanted)
    with pytest.raises(UserError, match=f"MINDSPEED_IFT_DEVICE={wanted}, but torch finds no such device; unset it"):
        device.current()


def test_the_cpu_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("MINDSPEED_IFT_DEVICE", "cpu")
    assert device.current().kind == "cpu" and device.current().reason == "MINDSPEED_IFT_DEVICE=cpu"
