"""Attention in parts: each part is plain attention, and the parts merge into the whole, gradients too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mindspeed_ift.devices.kernels import blocks, reference
from tests.tolerances import ATTENTION, ATTENTION_GRADIENTS


def random_tensors(tokens: int, keys: int, heads: int, key_heads: int, size: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens + 10 * keys + heads)
    shapes = [(tokens, heads, size), (keys, key_heads, size), (keys, key_heads, size)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def plain(query: Tensor, key: Tensor, value: Tensor, offset: int | None) -> tuple[Tensor, Tensor]:
    """One segment in float64 by the textbook: the output and the log-sum-exp."""
    query, key, value = (tensor.double().transpose(0, 1) for tensor in (query, key, value))
    repeats = len(query) // len(key)
    key, value = key.repeat_interleave(repeats, 0), value.repeat_interleave(repeats, 0)
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if offset is not None:
        scores = scores.masked_fill(~torch.ones(scores.shape[1:], dtype=torch.bool).tril(offset), -torch.inf)
    return (scores.softmax(-1) @ value).transpose(0, 1).float(), scores.logsumexp(-1).T.float()


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tile", [1024, 3])
@pytest.mark.parametrize(
    ("query_ends", "key_ends"), [((0, 7), (0, 7)), ((0, 1, 6, 9), (0, 4, 9, 12)), ((0, 5, 5, 6), (0, 11, 11, 12))]
)
def test_a_part_is_plain_attention(
    monkeypatch: pytest.MonkeyPatch,
    query_ends: tuple[int, ...],
    key_ends: tuple[int, ...],
    tile: int,
    causal: bool,
    key_heads: int,
) -> None:
    monkeypatch.setattr(blocks, "_TILE", tile)
    tensors = random_tensors(query_ends[-1], key_ends[-1], 4, key_heads)
    segments = list(zip(query_ends, query_ends[1:], key_ends, key_ends[1:]))
    parts = [
        plain(tensors[0][q0:q1], tensors[1][k0:k1], tensors[2][k0:k1], k1 - k0 - (q1 - q0) if causal else None)
        for q0, q1, k0, k1 in segments
        if q1 > q0
    ]
    expected, expected_lse = (torch.cat(values) for values in zip(*parts))
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    expected_grads = torch.autograd.grad(expected, tensors, grad)
    with torch.no_grad():
        out, lse = blocks.attention_forward(*tensors, query_ends, key_ends, causal)
        grads = blocks.attention_backward(grad, *tensors, out, lse, query_ends, key_ends, causal)
    torch.testing.assert_close(out, expected, **ATTENTION)
    torch.testing.assert_close(lse, expected_lse, **ATTENTION)
    for found, wanted in zip(grads, expected_grads):
        torch.testing.assert_close(found, wanted, **ATTENTION_GRADIENTS)


def test_parts_merge_into_the_whole() -> None:
    """Ten queries that see four keys first and six of their own: a rectangle and a causal block."""
    query, key, value = random_tensors(10, 10, 4, 2)
    expected = reference.attention(*(tensor[:, None] for tensor in (query, key, value)), None)[:, 0]
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    expected_grads = torch.autograd.grad(expected, (query, key, value), grad)
    with torch.no_grad():
        home = (0, 4, 10)
        out, lse = blocks.attention_forward(query, key, value, home, home, True)
        away = (query[4:], key[:4], value[:4])
        blocks.merge(out[4:], lse[4:], *blocks.attention_forward(*away, (0, 6), (0, 4), False))
        grads = blocks.attention_backward(grad, query, key, value, out, lse, home, home, True)
        parts = blocks.attention_backward(grad[4:], *away, out[4:], lse[4:], (0, 6), (0, 4), False)
    grads[0][4:] += parts[0]
    grads[1][:4] += parts[1]
    grads[2][:4] += parts[2]
    torch.testing.assert_close(out, expected.detach(), **ATTENTION)
    for found, wanted in zip(grads, expected_grads):
        torch.testing.assert_close(found, wanted, **ATTENTION_GRADIENTS)
