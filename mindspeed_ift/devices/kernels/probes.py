"""Each kernel of a device on a small input against its plain twin on the CPU in fp32, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mindspeed_ift.devices.kernels.table import PLAIN, Kernels

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest deviation allowed, relative to the largest value of the twin. bf16 rounds by up to 2 ** -8 at each of a few steps
of which the twin in fp32 has none; fp32 leaves room for other orders of sums, not for a format with fewer bits."""

_ENDS = (0, 5, 6, 12, 24)  # of two rows with 12 positions each
_COUNTS = (3, 0, 5)
_SIZES = {"query": (12, 2, 4, 16), "key": (12, 2, 2, 16), "value": (12, 2, 2, 16)}
Probe = Callable[[Kernels, Callable[..., Tensor], torch.device], list[Tensor]]


def deviations(kernels: Kernels, group: str, device: torch.device, dtype: torch.dtype) -> list[float]:
    """How far results and gradients of a group's kernels are from those of the plain twins.

    Args:
        kernels: those of the device.
        group: of `table.GROUPS`.
        device: where they run.
        dtype: in which they run; the twins take the same, rounded, values in fp32.

    Returns:
        For each result and gradient the largest difference relative to the largest value; infinite where it is not finite.
    """
    results = []
    for one, place, kind in ((kernels, device, dtype), (PLAIN, torch.device("cpu"), torch.float32)):
        generator = torch.Generator().manual_seed(5)
        leaves: list[Tensor] = []

        def make(
            *shape: int,
            generator: torch.Generator = generator,
            place: torch.device = place,
            kind: torch.dtype = kind,
            leaves: list[Tensor] = leaves,
        ) -> Tensor:
            values = torch.randn(shape, generator=generator).to(dtype).to(place, kind)
            leaves.append(values.requires_grad_())
            return values

        outs = _PROBES[group](one, make, place)
        graphs = [out for out in outs if out.requires_grad]
        grads = torch.autograd.grad([out.float().pow(2).sum() for out in graphs], leaves) if graphs else ()
        results.append([tensor.detach().float().cpu() for tensor in (*outs, *grads)])
    return [_deviation(found, twin) for found, twin in zip(*results, strict=True)]


def _deviation(found: Tensor, twin: Tensor) -> float:
    largest = float((found - twin).abs().max() / twin.abs().max().clamp_min(1e-6))
    return largest if found.isfinite().all() else float("inf")


def _attention(kernels: Kernels, make: Callable[..., Tensor], place: torch.device) -> list[Tensor]:
    tensors = [make(*shape) for shape in _SIZES.values()]
    return [kernels.attention(*tensors, None), kernels.attention(*tensors, torch.tensor(_ENDS, dtype=torch.int32))]


def _parts_of_attention(kernels: Kernels, make: Callable[..., Tensor], place: torch.device) -> list[Tensor]:
    tensors = [make(*shape).detach().flatten(0, 1) for shape in _SIZES.values()]
    grad = make(24, 4, 16).detach()
    found = []
    for causal in (True, False):
        out, sums = kernels.attention_forward(*tensors, _ENDS, _ENDS, causal)
        found += [out, sums, *kernels.attention_backward(grad, *tensors, out, sums, _ENDS, _ENDS, causal)]
    return found


def _rotary(kernels: Kernels, make: Callable[..., Tensor], place: torch.device) -> list[Tensor]:
    tensor = make(12, 2, 4, 16)
    angles = torch.arange(12)[:, None] / 7.0 ** torch.arange(8)
    turns = torch.cat([angles, angles], -1)[:, None, None].to(place, tensor.dtype)
    return [kernels.rotary(tensor, turns.cos(), turns.sin())]


def _permute(kernels: Kernels, make: Callable[..., Tensor], place: torch.device) -> list[Tensor]:
    experts = torch.tensor([[number % 5, (3 * number + 1) % 5] for number in range(12)]).to(place)
    copies, places = kernels.permute(make(12, 16), experts)
    return [copies, places, kernels.unpermute(copies * make(24, 16), places, 2)]


def _linear(kernels: Kernels, make: Callable[..., Tensor], place: torch.device) -> list[Tensor]:
    tokens, weight = make(24, 16).detach(), make(40, 16).detach()
    logits = kernels.linear(tokens, weight)
    total = torch.zeros(40, 16, dtype=torch.float32, device=place)
    kernels.add_product(total, logits, tokens)
    return [logits, kernels.linear(logits, weight.t()), total]


def _cross_entropy(kernels: Kernels, make: Callable[..., Tensor], place: torch.device) -> list[Tensor]:
    logits, weights = make(12, 40).detach(), make(12).detach().float()
    columns = (torch.arange(12) * 7 % 40).to(place)
    found = kernels.softmax_sums(logits.clone(), columns)
    return [*found, kernels.softmax_gradient(logits.clone(), found[2], weights, columns, weights)]


def _adamw(kernels: Kernels, make: Callable[..., Tensor], place: torch.device) -> list[Tensor]:
    weight = make(8, 8).detach().float().requires_grad_()
    weight.grad = make(8, 8).detach().float()
    options: dict[str, Any] = {"fused": True} if kernels.fused_adamw else {"foreach": True}
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1, **options)
    for _ in range(2):
        optimizer.step()
    return [weight.detach()]


_PROBES: dict[str, Probe] = {
    "attention": _attention,
    "attention of parts": _parts_of_attention,
    "rms_norm": lambda kernels, make, place: [kernels.rms_norm(make(24, 32), make(32), 1e-6)],
    "swiglu": lambda kernels, make, place: [kernels.swiglu(make(24, 32))],
    "rotary": _rotary,
    "grouped_matmul": lambda kernels, make, place: [kernels.grouped_matmul(make(8, 16), make(3, 16, 8), _COUNTS)],
    "permute": _permute,
    "linear": _linear,
    "cross_entropy": _cross_entropy,
    "adamw": _adamw,
}
PROBED = {group: [torch.float32] if group == "adamw" else list(TOLERANCES) for group in _PROBES}
"""What can be probed, and in which dtypes: the groups of `table.GROUPS`, and the parts of attention that a ring merges.
Weights of the optimizer are always fp32."""
