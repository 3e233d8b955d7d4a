"""The kernels of a layer besides attention, through torch_npu, equal their plain twins, gradients included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mindspeed_ift.devices.kernels import npu, reference
from tests.device.contract import ContractError
from tests.tolerances import KERNEL, KERNEL_BF16


def draw(*shapes: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(tuple(shape), generator=generator).requires_grad_() for shape in shapes]


def compare(kernel: Callable[..., Tensor], twin: Callable[..., Tensor], tensors: list[Tensor], *rest: Any) -> None:
    """Results and gradients in fp32, results in bf16."""
    out, expected = kernel(*tensors, *rest), twin(*tensors, *rest)
    torch.testing.assert_close(out, expected, **KERNEL)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    for found, wanted in zip(torch.autograd.grad(out, tensors, grad), torch.autograd.grad(expected, tensors, grad)):
        torch.testing.assert_close(found, wanted, **KERNEL)
    narrow = [one.bfloat16() if isinstance(one, Tensor) else one for one in [*tensors, *rest]]
    result = kernel(*narrow)
    assert result.dtype == torch.bfloat16
    assert float((result - expected).abs().max()) <= KERNEL_BF16 * float(expected.abs().max())


@pytest.mark.parametrize("shape", [(5, 2, 64), (3, 1, 4, 16)])
def check_rms_norm(shape: tuple[int, ...]) -> None:
    compare(npu.rms_norm, reference.rms_norm, draw(shape, shape[-1:]), 1e-5)


@pytest.mark.parametrize("shape", [(5, 2, 64), (7, 16)])
def check_swiglu(shape: tuple[int, ...]) -> None:
    compare(npu.swiglu, reference.swiglu, draw(shape))


def check_swiglu_of_nothing_and_of_a_view() -> None:
    assert npu.swiglu(torch.empty(0, 8)).shape == (0, 4)
    (wide,) = draw((6, 16))
    compare(lambda whole: npu.swiglu(whole[:, ::2]), lambda whole: reference.swiglu(whole[:, ::2]), [wide])


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("heads", [1, 4])
def check_rotary(rows: int, heads: int) -> None:
    angles = torch.rand(6, rows, 1, 4).repeat(1, 1, 1, 2) * 6
    compare(npu.rotary, reference.rotary, draw((6, rows, heads, 8)), angles.cos(), angles.sin())


@pytest.mark.parametrize("counts", [[3, 4, 2], [0, 9, 0], [9, 0, 0], [1, 0, 8]])
def check_grouped_matmul(counts: list[int]) -> None:
    compare(npu.grouped_matmul, reference.grouped_matmul, draw((9, 8), (3, 8, 5)), counts)


def check_grouped_matmul_without_tokens() -> None:
    tokens, weights = draw((0, 8), (3, 8, 5))
    out = npu.grouped_matmul(tokens, weights, [0, 0, 0])
    assert out.shape == (0, 5)
    assert not torch.autograd.grad(out.sum(), weights)[0].any()


@pytest.mark.parametrize("experts", [[[0], [2], [1], [2]], [[1, 2], [0, 3], [0, 2], [2, 3]]])
def check_permutation(experts: list[list[int]]) -> None:
    """There, where the places must be the same, and back."""
    if reason := npu.offers()["permute"].missing:
        pytest.skip(reason)
    indices, size = torch.tensor(experts), len(experts[0])
    tokens, copies = draw((4, 6), (4 * size, 6))
    compare(lambda tokens: npu.permute(tokens, indices)[0], lambda one: reference.permute(one, indices)[0], [tokens])
    places, expected = npu.permute(tokens, indices)[1], reference.permute(tokens, indices)[1]
    assert places.tolist() == expected.tolist()
    compare(
        lambda copies: npu.unpermute(copies, places, size),
        lambda copies: reference.unpermute(copies, expected, size),
        [copies],
    )


def check_permutation_of_nothing() -> None:
    ordered, places = npu.permute(torch.empty(0, 6), torch.empty(0, 2, dtype=torch.int64))
    assert ordered.shape == (0, 6) and npu.unpermute(ordered, places, 2).shape == (0, 6)


def check_that_wrong_calls_are_refused() -> None:
    import torch_npu

    hidden = torch.randn(3, 8, dtype=torch.bfloat16)
    with pytest.raises(ContractError, match="gamma of torch.float16 does not go with"):
        torch_npu.npu_rms_norm(hidden, torch.ones(8, dtype=torch.float16), epsilon=1e-6)
    with pytest.raises(ContractError, match="gamma is not as the last dimensions"):
        torch_npu.npu_rms_norm(hidden, torch.ones(4, dtype=torch.bfloat16), epsilon=1e-6)
    for wrong in (hidden.t(), hidden[:0]):
        with pytest.raises(ContractError, match="empty or not contiguous"):
            torch_npu.npu_swiglu(wrong)
    heads, turns = torch.randn(4, 2, 3, 8), torch.rand(4, 2, 1, 8)
    for wrong_turns in (turns.bfloat16(), turns[:, :, :, :4], turns.transpose(0, 1)):
        with pytest.raises(ContractError, match="turns"):
            torch_npu.npu_rotary_mul(heads, wrong_turns, wrong_turns)
    tokens, weights = torch.randn(4, 8), torch.randn(2, 8, 5)
    options = {"split_item": 3, "group_type": 0, "group_list_type": 0}
    for ends, sentence in (([1, 3], "ends at 3, but there are 4"), ([3, 1, 4], "must not fall"), ([4], "a matrix for")):
        with pytest.raises(ContractError, match=sentence):
            torch_npu.npu_grouped_matmul([tokens], [weights], group_list=torch.tensor(ends), **options)
    with pytest.raises(ContractError, match="indices must be int32 or int64"):
        torch_npu.npu_moe_token_permute(tokens, torch.zeros(4, 2))
    places = torch.arange(4, dtype=torch.int32)
    with pytest.raises(ContractError, match="probs must be"):
        torch_npu.npu_moe_token_unpermute(tokens, places)
    with pytest.raises(ContractError, match="as permute gave them"):
        torch_npu.npu_moe_token_unpermute(tokens, places.long(), probs=torch.ones(2, 2))
