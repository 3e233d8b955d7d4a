"""torch_npu's operators on CPU tensors: under the real schemas, textbook mathematics that keeps to the contract.

`install` registers them; it needs an importable torch_npu. Each call is checked (`contract`) and remembered
(`recording`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from tests.device import attention_operators, small_operators

_LIBRARIES: list[torch.library.Library] = []


def install() -> None:
    """Register all operators that the installed torch_npu has."""
    import torch_npu

    # Its optimizers ask for the device's name, also for weights on the CPU.
    torch_npu.npu.current_device, torch_npu.npu.get_device_name = lambda: 0, lambda _: "Ascend910B1"
    library = torch.library.Library("npu", "IMPL")
    _LIBRARIES.append(library)  # what is registered goes with it
    register(library, torch.ops.npu)


def register(library: torch.library.Library, defined: Any) -> None:
    """Register the ``defined`` ones for CPU tensors, gradients through the real operators' own gradient operators."""
    for module in (attention_operators, small_operators):
        for name, function in module.OPERATORS.items():
            if hasattr(defined, name):
                library.impl(name, function, "CPU")
        for name, (forward, differentiable) in module.DIFFERENTIABLE.items():
            if hasattr(defined, name):
                library.impl(name, _apply(differentiable, forward), "AutogradCPU")


def _apply(function: type[torch.autograd.Function], forward: Callable[..., Any]) -> Callable[..., Any]:
    """Calls the autograd function with every argument of the operator, the last for what is given by name only."""
    signature = inspect.signature(forward)

    def call(*args: Any, **options: Any) -> Any:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        return function.apply(*bound.args, bound.kwargs)

    return call
