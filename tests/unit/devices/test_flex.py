"""FlexAttention over boundaries, on CPU tensors, where it computes what its kernels do one operator after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import flex_attention

from mindspeed_ift.devices.kernels import flex, reference
from mindspeed_ift.devices.kernels.probes import TOLERANCES, deviations
from mindspeed_ift.devices.kernels.table import PLAIN
from tests.tolerances import ATTENTION_BF16

CPU = torch.device("cpu")
B = flex.BLOCK
ENDS = [
    (0, B),
    (0, 3 * B),
    (0, 5, B, B + 1, 3 * B - 1, 4 * B),
    (0, 2 * B + 3, 2 * B + 3, 5 * B),
    (0, B, 2 * B, 3 * B),
    tuple(range(0, 2 * B + 1)),
]


@pytest.fixture
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As it is, on the CPU too, where it has a backward pass that it does not admit."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "_compiled", lambda: flex_attention.flex_attention)
    flex._mask.cache_clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("ends", ENDS)
def test_its_blocks_are_those_of_the_mask(ends: tuple[int, ...]) -> None:
    """As the matrix of all queries and keys says: whole where all is seen, in part where something is."""
    mask = flex._mask(ends, CPU)
    tokens = torch.arange(ends[-1])
    seen = mask.mask_mod(0, 0, tokens[:, None], tokens[None])
    segments = torch.from_numpy(np.repeat(np.arange(len(ends) - 1), np.diff(ends)))
    assert torch.equal(seen, (segments[:, None] == segments[None]) & (tokens[:, None] >= tokens[None]))
    of_blocks = seen.unflatten(1, (-1, B)).unflatten(0, (-1, B)).transpose(1, 2)  # [Q, K, B, B]
    some, every = of_blocks.any(-1).any(-1), of_blocks.all(-1).all(-1)
    for row in range(len(some)):
        parts = mask.kv_indices[0, 0, row, : mask.kv_num_blocks[0, 0, row]]
        whole = mask.full_kv_indices[0, 0, row, : mask.full_kv_num_blocks[0, 0, row]]
        assert whole.tolist() == every[row].nonzero().flatten().tolist()
        assert parts.tolist() == (some & ~every)[row].nonzero().flatten().tolist()


def test_attention_is_its_twin(not_compiled: None) -> None:
    kernels, dtype = replace(PLAIN, attention=flex.attention), torch.bfloat16
    assert 0 < max(deviations(kernels, "attention", CPU, dtype)) <= TOLERANCES[dtype]


def test_rows_of_several_blocks_are_those_of_the_twin(not_compiled: None) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(150, 2, heads, 16, generator=generator).bfloat16().requires_grad_() for heads in (4, 2, 2)]
    grad = torch.randn(150, 2, 4, 16, generator=generator)
    for ends in (None, torch.tensor([0, 20, 20, 150, 290, 300], dtype=torch.int32)):
        wide = [tensor.detach().float().requires_grad_() for tensor in tensors]
        twin = reference.attention(*wide, ends)
        wanted = (twin, *torch.autograd.grad(twin, wide, grad))
        out = flex.attention(*tensors, ends)
        found = (out, *torch.autograd.grad(out, tensors, grad.bfloat16()))
        for one, other in zip(found, wanted):
            assert one.shape == other.shape
            assert (one.float() - other).abs().max() <= ATTENTION_BF16 * max(1, float(other.abs().max()))


def test_what_it_does_not_take_is_left_to_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_compiled", lambda: pytest.fail("it was called"))
    for dtype, size in ((torch.float32, 16), (torch.bfloat16, 24)):
        tensors = [torch.randn(5, 1, heads, size, dtype=dtype) for heads in (4, 2, 2)]
        ends = torch.tensor([0, 2, 5], dtype=torch.int32)
        assert torch.equal(flex.attention(*tensors, ends), reference.attention(*tensors, ends))


def test_a_mask_is_made_once_for_all_layers(not_compiled: None) -> None:
    tensors = [torch.randn(6, 1, heads, 16, dtype=torch.bfloat16) for heads in (4, 2, 2)]
    for _ in range(3):
        flex.attention(*tensors, torch.tensor([0, 4, 6], dtype=torch.int32))
    assert flex._mask.cache_info().misses == 1


def test_two_graphs_serve_any_boundaries_and_any_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def note(graph: torch.fx.GraphModule, _inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(flex, "_BACKEND", note)
    torch._dynamo.reset()
    flex._compiled.cache_clear()
    try:
        for tokens, ends in (
            (256, (0, 9, 256)),
            (256, (0, 100, 130, 256)),
            (600, (0, 600)),
            (1000, (0, 3, 1000)),
            (300, (0, 300)),
        ):
            tensors = [torch.randn(tokens, 1, heads, 16, dtype=torch.bfloat16) for heads in (4, 2, 2)]
            boundaries = torch.tensor(ends, dtype=torch.int32)
            found, twin = flex.attention(*tensors, boundaries), reference.attention(*tensors, boundaries)
            assert (found - twin).abs().max() <= ATTENTION_BF16 * max(1, float(twin.abs().max()))
    finally:
        torch._dynamo.reset()
        flex._compiled.cache_clear()
    assert len(graphs) == 2
