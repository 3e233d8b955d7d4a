"""Attention through torch_npu equals its plain twins, gradients included."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from mindspeed_ift.devices.kernels import blocks, npu, reference
from tests.device.recording import CALLS
from tests.tolerances import ATTENTION, ATTENTION_BF16, ATTENTION_GRADIENTS


def draw(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(map(sum, shapes)))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def rows(length: int, count: int, key_heads: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return draw((length, count, 4, 8), (length, count, key_heads, 8), (length, count, key_heads, 8), dtype=dtype)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("count", "ends"),
    [
        (1, None),
        (3, None),
        (1, [0, 12]),
        (1, [0, 1, 7, 12]),
        (1, [0, 5, 5, 12]),
        (2, [0, 3, 12, 13, 24]),
        (1, list(range(13))),
    ],
)
def check_rows(count: int, ends: list[int] | None, key_heads: int) -> None:
    tensors = rows(12, count, key_heads)
    boundaries = None if ends is None else torch.tensor(ends, dtype=torch.int32)
    expected = reference.attention(*tensors, boundaries)
    out = npu.attention(*tensors, boundaries)
    torch.testing.assert_close(out, expected, **ATTENTION)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    for found, wanted in zip(torch.autograd.grad(out, tensors, grad), torch.autograd.grad(expected, tensors, grad)):
        torch.testing.assert_close(found, wanted, **ATTENTION_GRADIENTS)


def check_bf16() -> None:
    tensors = rows(12, 1, 2, torch.bfloat16)
    boundaries = torch.tensor([0, 5, 12], dtype=torch.int32)
    out, expected = npu.attention(*tensors, boundaries), reference.attention(*(x.float() for x in tensors), boundaries)
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).abs().max() <= ATTENTION_BF16 * max(1.0, float(expected.abs().max()))


def check_more_segments_than_one_call_takes() -> None:
    """2,500 segments in three calls; one segment more than the limit in one call is refused."""
    tensors = draw((2600, 1, 2, 4), (2600, 1, 1, 4), (2600, 1, 1, 4))
    boundaries = torch.tensor([*range(0, 200, 2), *range(200, 2601)], dtype=torch.int32)
    assert len(boundaries) - 1 == 2500
    out, expected = npu.attention(*tensors, boundaries), reference.attention(*tensors, boundaries)
    torch.testing.assert_close(out, expected, **ATTENTION)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    for found, wanted in zip(torch.autograd.grad(out, tensors, grad), torch.autograd.grad(expected, tensors, grad)):
        torch.testing.assert_close(found, wanted, **ATTENTION_GRADIENTS)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("most", [1024, 2])
@pytest.mark.parametrize(
    ("query_ends", "key_ends", "causal"),
    [
        ((0, 7), (0, 7), True),
        ((0, 2, 6, 6, 9), (0, 2, 6, 6, 9), True),
        ((0, 3, 5, 9), (0, 8, 10, 14), True),
        ((0, 6), (0, 4), False),
        ((0, 2, 5, 6), (0, 4, 11, 12), False),
    ],
)
def check_parts(
    monkeypatch: pytest.MonkeyPatch,
    query_ends: tuple[int, ...],
    key_ends: tuple[int, ...],
    causal: bool,
    most: int,
    key_heads: int,
) -> None:
    """Home, gathered keys and rectangles; the backward pass with the log-sum-exp of more than this part."""
    monkeypatch.setattr(npu, "MOST_SEGMENTS", most)
    tensors = draw((query_ends[-1], 4, 8), (key_ends[-1], key_heads, 8), (key_ends[-1], key_heads, 8))
    with torch.no_grad():
        found = npu.attention_forward(*tensors, query_ends, key_ends, causal)
        wanted = blocks.attention_forward(*tensors, query_ends, key_ends, causal)
        for mine, theirs in zip(found, wanted):
            torch.testing.assert_close(mine, theirs, **ATTENTION)
        out, lse = wanted
        other = draw(out.shape, lse.shape)
        blocks.merge(out, lse, *other)
        grad = draw((1, *out.shape))[0][0]
        mine = npu.attention_backward(grad, *tensors, out, lse, query_ends, key_ends, causal)
        theirs = blocks.attention_backward(grad, *tensors, out, lse, query_ends, key_ends, causal)
    for one, other in zip(mine, theirs):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, **ATTENTION_GRADIENTS)


def check_that_the_operators_were_called() -> None:
    layouts = {layout for name, layout, _ in CALLS if name == "npu_fusion_attention"}
    assert layouts == {"SBH, sparse_mode 3", "TND, sparse_mode 3", "TND, no mask"}


def check_that_training_follows_answers() -> None:
    """The mask is made at the first call, which may be one that keeps nothing for a backward pass."""
    npu._triangle.cache_clear()
    with torch.inference_mode():
        npu.attention(*rows(4, 1, 2), None)
    tensors = rows(4, 1, 2)
    assert torch.autograd.grad(npu.attention(*tensors, None).sum(), tensors)[0].shape == (4, 1, 4, 8)


def check_that_the_triangle_is_made_once() -> None:
    assert npu._triangle(torch.device("cpu")) is npu._triangle(torch.device("cpu"))


def check_that_meta_kernels_agree() -> None:
    """The real shapes: torch_npu's own meta kernels, for the layouts that are used and that they know (TND not for long)."""
    from torch_npu.op_plugin.meta import _meta_registrations

    known = inspect.getsource(_meta_registrations.npu_fusion_attention_forward)
    _meta_registrations.get_soc_version = lambda: 220
    options = {"head_num": 4, "scale": 1.0}
    shapes = {"SBH": (6, 2, 32), "TND": (6, 4, 8)}
    for layout, shape in [one for one in shapes.items() if f'"{one[0]}"' in known]:
        ends = {"actual_seq_qlen": [6], "actual_seq_kvlen": [6]} if layout == "TND" else {}
        arguments = {**options, **ends, "input_layout": layout}
        real, ours = (
            torch.ops.npu.npu_fusion_attention(*[torch.empty(shape, device=device)] * 3, **arguments)
            for device in ("meta", "cpu")
        )
        for one, other in zip(real[:4], ours[:4]):
            assert one.shape == other.shape and one.dtype == other.dtype
