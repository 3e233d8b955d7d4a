"""What ``torch.cuda`` answers where there is one device; tensors are those of `memory`."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch._dynamo
import torch._subclasses.fake_tensor as fake_tensor
import torch.distributed as dist
from torch.testing._internal.distributed import fake_pg  # noqa: F401 - registers the backend "fake"

from tests.device.fake_cuda.memory import FakeCuda

CAPABILITY = (9, 0)
NAME = "NVIDIA H100 80GB HBM3"


class _Stream:
    """The device's one stream, or an event of it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def _nothing(self, *_: Any, **__: Any) -> None:
        return None

    record = wait = wait_stream = wait_event = _nothing

    def record_event(self, event: Any = None) -> Any:
        return event or _Stream()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def elapsed_time(self, _other: Any) -> float:
        return 0.0


def _always(value: Any = None) -> Callable[..., Any]:
    return lambda *_, **__: value


def install(device: FakeCuda) -> None:
    """Let torch.cuda speak of the device, in this process, for good."""
    state = torch.zeros(16, dtype=torch.uint8)
    generator = SimpleNamespace(
        get_state=lambda: state.clone(), set_state=_always(), manual_seed=_always(), initial_seed=_always(0)
    )
    answers: dict[str, Any] = {
        "is_available": _always(True),
        "is_initialized": _always(True),
        "is_bf16_supported": _always(True),
        "is_current_stream_capturing": _always(False),
        "device_count": _always(1),
        "current_device": _always(0),
        "get_device_capability": _always(CAPABILITY),
        "get_device_name": _always(NAME),
        "memory_allocated": _always(0),
        "max_memory_allocated": _always(0),
        "get_rng_state": lambda *_, **__: state.clone(),
        "default_generators": (generator,),
        "current_stream": _always(_Stream()),
        "default_stream": _always(_Stream()),
        "Stream": _Stream,
        "Event": _Stream,
        "stream": lambda _: contextlib.nullcontext(),
        "synchronize": lambda *_: device.wait("synchronize"),
        "_lazy_call": lambda function, **_: function(),
    }
    answers |= {name: _always() for name in ("set_device", "set_rng_state", "manual_seed", "empty_cache", "_lazy_init")}
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    for name in ("get_rng_state", "set_rng_state", "manual_seed"):
        setattr(torch.cuda.random, name, answers[name])
    for name in ("range_push", "range_pop"):
        setattr(torch.cuda.nvtx, name, _always())
    fake_tensor.init_gpu_context = _always()
    # Under it operators come to the device that torch takes apart elsewhere.
    torch.inference_mode = lambda on=True: torch.no_grad() if on else contextlib.nullcontext()  # type: ignore
    torch.backends.cuda.is_flash_attention_available = _always(True)
    torch.nn.Module._apply = _apply  # type: ignore[method-assign]
    # A list of numbers is read from the device in one go, and not one by one as fake tensors do.
    fake_tensor.FakeTensor.tolist = lambda tensor: tensor.cpu().tolist()  # type: ignore[method-assign]
    torch.Tensor.record_stream = _always()  # type: ignore[method-assign]
    _pin()
    _pretend("triton")
    start = dist.init_process_group
    dist.init_process_group = lambda backend, **options: start("fake" if backend == "nccl" else backend, **options)


def _apply(module: torch.nn.Module, function: Callable[..., Any], recurse: bool = True) -> torch.nn.Module:
    """Parameters keep their attributes, as those of a real device do, whose data are set."""
    for child in module.children() if recurse else ():
        child._apply(function)
    with torch.no_grad():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            moved = function(parameter)
            if isinstance(parameter, fake_tensor.FakeTensor) or not isinstance(moved, fake_tensor.FakeTensor):
                parameter.data = moved
                continue
            module._parameters[name] = torch.nn.Parameter(moved, parameter.requires_grad)
            vars(module._parameters[name]).update(vars(parameter))
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else function(buffer)
    return module


def _pin() -> None:
    """Memory of the host that says it is pinned once it was asked to be."""
    pinned = "_pinned_for_fake_cuda"

    def pin(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
        copy = tensor.clone()
        setattr(copy, pinned, True)
        return copy

    torch.Tensor.pin_memory = pin  # type: ignore[method-assign]
    torch.Tensor.is_pinned = lambda tensor, *_: hasattr(tensor, pinned)  # type: ignore[method-assign]


def _pretend(package: str) -> None:
    """It is found where one looks whether it is installed."""
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: object() if name == package else find(name, *rest)  # type: ignore
