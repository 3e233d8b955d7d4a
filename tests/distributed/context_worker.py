"""Context parallel attention against full attention in one world of four: writes what differs.

Ranks 0 to n - 1 make up a context parallel group of n; the others wait. Every rank draws the same rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed_ift.config.layout import Layout
from mindspeed_ift.devices.kernels import reference
from mindspeed_ift.parallel.context.attention import choose_attention, communication_type
from mindspeed_ift.parallel.context.split import local_positions

WORLD, HEAD_SIZE = 4, 8
LAYOUTS = {
    "ring 2": Layout(context=2),
    "ring 3": Layout(context=3),
    "ring 4": Layout(context=4),
    "ulysses 2": Layout(context=2, ulysses=2),
    "ulysses 3": Layout(context=3, ulysses=3),
    "ulysses 4": Layout(context=4, ulysses=4),
    "hybrid 2 x 2": Layout(context=4, ulysses=2),
    "gather 2": Layout(context=2, gather_keys=True),
    "gather 3": Layout(context=3, gather_keys=True),
    "gather 4": Layout(context=4, gather_keys=True),
}
LENGTH = 48
HEADS = 12


def rows_to_try() -> Iterator[tuple[str, int, list[int] | None]]:
    """(name, rows, boundaries)."""
    generator = np.random.default_rng(11)
    yield "a row each, without boundaries", 2, None
    yield "one sample", 1, [0, LENGTH]
    yield "samples of one token", 1, list(range(LENGTH + 1))
    yield "one token, nearly all, one token", 1, [0, 1, LENGTH - 1, LENGTH]
    yield "one sample and pads", 2, [0, 37, LENGTH, 2 * LENGTH - 1, 2 * LENGTH]
    for number in range(8):
        rows = 1 + number % 3
        cuts = generator.integers(1, rows * LENGTH, generator.integers(0, 9)).tolist()
        yield f"random {number}", rows, sorted({*range(0, rows * LENGTH + 1, LENGTH), *cuts})


class Counted:
    """The reference kernels; counts the blocks that are computed."""

    def __init__(self) -> None:
        self.forward = self.backward = 0

    attention = staticmethod(reference.attention)

    def attention_forward(self, *tensors: Any) -> tuple[Tensor, Tensor]:
        self.forward += 1
        return reference.attention_forward(*tensors)

    def attention_backward(self, *tensors: Any) -> tuple[Tensor, Tensor, Tensor]:
        self.backward += 1
        return reference.attention_backward(*tensors)


def differences(attend: Callable[..., Tensor], layout: Layout, key_heads: int, dtype: torch.dtype) -> Iterator[dict]:
    """For each kind of rows: how far this rank's output and gradients are from those of full attention."""
    rank = dist.get_rank()
    for number, (name, rows, ends) in enumerate(rows_to_try()):
        generator = torch.Generator().manual_seed(number)
        boundaries = None if ends is None else torch.tensor(ends, dtype=torch.int32)
        shapes = [(LENGTH, rows, heads, HEAD_SIZE) for heads in (HEADS, key_heads, key_heads, HEADS)]
        query, key, value, grad = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
        whole = [tensor.float().requires_grad_() for tensor in (query, key, value)]
        expected = reference.attention(*whole, boundaries)
        wanted = [expected, *torch.autograd.grad(expected, whole, grad.float())]
        positions = local_positions(LENGTH, layout, rank)
        local = [tensor[positions].requires_grad_() for tensor in (query, key, value)]
        out = attend(*local, boundaries)
        found = [out, *torch.autograd.grad(out, local, grad[positions])]
        for kind, mine, theirs in zip(("output", "query", "key", "value"), found, wanted):
            assert mine.dtype == dtype and mine.shape == theirs[positions].shape
            far = (mine.detach().float() - theirs[positions].detach()).abs().max()
            yield {"rows": name, "of": kind, "far": far.item(), "most": max(1.0, theirs.detach().abs().max().item())}


def context_groups(layout: Layout) -> SimpleNamespace:
    """The groups that Megatron would build; every rank of the world takes part."""
    exchange = [list(range(first, first + layout.ulysses)) for first in range(0, layout.context, layout.ulysses)]
    ring = [list(range(first, layout.context, layout.ulysses)) for first in range(layout.ulysses)]

    def mine(lists: list[list[int]]) -> Any:
        groups = {tuple(ranks): dist.new_group(ranks) for ranks in lists}
        return next((group for ranks, group in groups.items() if dist.get_rank() in ranks), None)

    return SimpleNamespace(cp=mine([list(range(layout.context))]), hcp=(mine(exchange), mine(ring)))


def counts(attend: Callable[..., Tensor], kernels: Counted, ends: list[int]) -> tuple[int, int]:
    """Blocks computed forward and backward for one row."""
    kernels.forward = kernels.backward = 0
    shape = (LENGTH // WORLD, 1, 2, HEAD_SIZE)
    tensors = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    attend(*tensors, torch.tensor(ends, dtype=torch.int32)).sum().backward()
    return kernels.forward, kernels.backward


def run_line(words: list[str]) -> None:
    """Compare every layout with full attention; this rank's findings go to ``FILE.rank``, of the only word."""
    found, kernels = [], Counted()
    for name, layout in LAYOUTS.items():
        groups = context_groups(layout)
        if dist.get_rank() < layout.context:
            attend = choose_attention(communication_type(layout), groups, kernels)  # type: ignore[arg-type]
            for key_heads in (1, 2, 12):
                record = partial(dict, layout=name, key_heads=key_heads)
                found += [record(**one) for one in differences(attend, layout, key_heads, torch.float32)]
            found += [
                dict(one, layout=name, key_heads=2, half=True) for one in differences(attend, layout, 2, torch.bfloat16)
            ]
        dist.barrier()
    groups = context_groups(LAYOUTS["ring 4"])
    attend = choose_attention("p2p", groups, kernels)  # type: ignore[arg-type]
    blocks = {name: counts(attend, kernels, ends) for name, ends in SPANS.items()}
    Path(f"{words[0]}.{dist.get_rank()}").write_text(json.dumps({"far": found, "blocks": blocks}), encoding="utf-8")


# Chunks are 6 long. Name -> ends of the samples of one row.
SPANS = {
    "none": list(range(0, LENGTH + 1, 6)),
    "inside": list(range(0, LENGTH + 1, 3)),
    "first edge": [0, 4, 8, *range(12, LENGTH + 1, 6)],
    "all": [0, LENGTH],
}
