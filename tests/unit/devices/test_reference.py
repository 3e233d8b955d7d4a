"""Plain kernels against the textbook in float64, gradients by torch's own differentiation."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mindspeed_ift.devices.kernels import reference
from tests.tolerances import KERNEL


def test_rotary_turns_pairs_of_channels() -> None:
    generator = torch.Generator().manual_seed(1)
    tensor, grad = (torch.randn(5, 2, 3, 8, generator=generator) for _ in range(2))
    angles = (torch.rand(5, 2, 1, 4, generator=generator) * 6).double()
    wide = tensor.double().requires_grad_()
    turned = torch.view_as_complex(torch.stack(wide.chunk(2, -1), -1)) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat([turned.real, turned.imag], -1)
    (expected_grad,) = torch.autograd.grad(expected, wide, grad.double())
    tensor.requires_grad_()
    turns = [function(angles.float()).repeat(1, 1, 1, 2) for function in (torch.cos, torch.sin)]
    out = reference.rotary(tensor, *turns)
    torch.testing.assert_close(out, expected.float(), **KERNEL)
    for given in (grad, grad.permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3)):  # as it may lie after attention
        (found,) = torch.autograd.grad(out, tensor, given, retain_graph=True)
        torch.testing.assert_close(found, expected_grad.float(), **KERNEL)
        assert found.is_contiguous()


def test_swiglu_gates_by_the_first_half() -> None:
    gate_and_up = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    gate, up = gate_and_up.double()[:, :3], gate_and_up.double()[:, 3:]
    torch.testing.assert_close(reference.swiglu(gate_and_up), (gate / (1 + (-gate).exp()) * up).float(), **KERNEL)


def test_tokens_ordered_by_expert_and_back() -> None:
    tokens = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    experts = torch.tensor([[1, 2], [0, 2], [0, 1], [2, 3]])
    copies, places = reference.permute(tokens, experts)
    assert torch.equal(copies, tokens[[1, 2, 0, 2, 0, 1, 3, 3]])  # two of expert 0, two of 1, three of 2, one of 3
    assert places.tolist() == [2, 4, 0, 5, 1, 3, 6, 7]
    scaled = copies * torch.arange(1, 9)[:, None]
    back = reference.unpermute(scaled, places, 2)
    factors = torch.tensor([3 + 5, 1 + 6, 2 + 4, 7 + 8])[:, None]
    torch.testing.assert_close(back, tokens * factors, **KERNEL)
    (grad,) = torch.autograd.grad(back.sum(), tokens)
    torch.testing.assert_close(grad, factors.expand(4, 5).float(), **KERNEL)


@pytest.mark.parametrize("counts", [[0, 3, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
def test_products_of_many_matrices_need_no_gradient(counts: list[int]) -> None:
    """The way without gradients leaves out matrices that have no token, and gives what the other gives."""
    torch.manual_seed(2)
    tokens, weights = torch.randn(sum(counts), 6), torch.randn(5, 6, 3)
    expected = reference.grouped_matmul(tokens, weights, counts)
    with torch.no_grad():
        found = reference.grouped_matmul(tokens, weights, counts)
    assert found.shape == (sum(counts), 3) and torch.equal(found, expected)


@pytest.mark.parametrize("taken", [True, False], ids=["taken as they are", "repeated"])
def test_shared_key_heads_never_need_the_weights_of_all_tokens(monkeypatch: pytest.MonkeyPatch, taken: bool) -> None:
    """Those of an older torch are repeated for its fused kernel."""
    if taken and not reference._shares_heads_on_cpu():
        pytest.skip("this torch has no fused kernel that takes shared heads as they are")
    monkeypatch.setattr(reference, "_shares_heads_on_cpu", lambda: taken)
    generator = torch.Generator().manual_seed(4)
    tensors = [torch.randn(64, 1, heads, 8, generator=generator).requires_grad_() for heads in (4, 2, 2)]
    grad = torch.randn(64, 1, 4, 8, generator=generator)
    with Largest() as largest:
        found = [out := reference.attention(*tensors, None), *torch.autograd.grad(out, tensors, grad)]
    assert largest.numel <= grad.numel()
    wide = [tensor.detach()[:, 0].double().requires_grad_() for tensor in tensors]
    query, key, value = (tensor.repeat_interleave(4 // tensor.shape[1], 1).transpose(0, 1) for tensor in wide)
    scores = (query @ key.mT / 8**0.5).masked_fill(torch.ones(64, 64).triu(1).bool(), float("-inf"))
    expected = (scores.softmax(-1) @ value).transpose(0, 1)
    for one, other in zip(found, [expected, *torch.autograd.grad(expected, wide, grad[:, 0].double())], strict=True):
        torch.testing.assert_close(one[:, 0], other.float(), **KERNEL)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        result = function(*args, **(kwargs or {}))
        made = [one for one in (result if isinstance(result, tuple) else (result,)) if isinstance(one, torch.Tensor)]
        self.numel = max([self.numel, *(one.numel() for one in made)])
        return result
