"""torch.compile for the fake device: what a function computes is one kernel, and so are its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.device.fake_cuda.memory import FakeCuda


def compiler(device: FakeCuda) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """In the place of `kernels.cuda._compiled`."""

    class OneKernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, function: Callable[..., Any], *inputs: Any) -> Any:
            ctx.function, ctx.inputs = function, inputs
            outputs: list[Tensor] = []
            with device.fused(function.__name__, [one for one in inputs if isinstance(one, Tensor)], outputs):
                found = function(*inputs)
                outputs += found if isinstance(found, tuple) else (found,)
            return found

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            wanted = [needed and isinstance(one, Tensor) for one, needed in zip(ctx.inputs, ctx.needs_input_grad[1:])]
            tensors = [one for one in ctx.inputs if isinstance(one, Tensor)]
            outputs: list[Tensor] = []
            with device.fused(f"{ctx.function.__name__} backward", [grad, *tensors], outputs), torch.enable_grad():
                leaves = [one.detach().requires_grad_() if want else one for one, want in zip(ctx.inputs, wanted)]
                of = [leaf for leaf, want in zip(leaves, wanted) if want]
                outputs += torch.autograd.grad(ctx.function(*leaves), of, grad)
            found = iter(outputs)
            return None, *(next(found) if want else None for want in wanted)

    return lambda function: lambda *inputs: OneKernel.apply(function, *inputs)
