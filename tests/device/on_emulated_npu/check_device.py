"""The emulated NPU computes, keeps host and device apart, and raises where it cannot serve."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch_npu

from tests.device.contract import ContractError
from tests.device.emulated_npu.kernels import Unserved

NUMBERS = torch.arange(6.0).view(2, 3)


def check_that_the_device_is_there() -> None:
    assert torch.npu.is_available() and torch.npu.device_count() == 8
    moved = NUMBERS.npu()
    assert str(moved.device) == "npu:0" and moved.cpu().device.type == moved.to("cpu").device.type == "cpu"
    assert torch.npu.max_memory_allocated() > 0


def check_results_in_place_in_out_and_of_views() -> None:
    moved = NUMBERS.npu()
    assert torch.equal(moved.t().contiguous().cpu(), NUMBERS.t())
    moved[:, 1].mul_(2)
    assert moved.cpu().tolist() == [[0, 2, 2], [3, 8, 5]]
    out = torch.empty(0, device="npu")
    torch.add(moved, 1, out=out)
    assert torch.equal(out.cpu(), moved.cpu() + 1)
    assert torch.equal(moved[torch.tensor([1, 0])].cpu(), moved.cpu()[[1, 0]])


@pytest.mark.parametrize(
    "function",
    [
        lambda tensor: tensor.repeat_interleave(3, -1),
        lambda tensor: tensor.repeat_interleave(2),
        lambda tensor: tensor.gather(1, torch.tensor([[2, 0, 2, 1]] * 2).to(tensor.device)),
        lambda tensor: tensor[:, None] @ tensor[..., None],
        lambda tensor: tensor.view(2, 1, 3) @ tensor.t(),
        lambda tensor: tensor.bfloat16().float(),
    ],
)
def check_gradients_of_torch_npus_own_formulas(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    found = []
    for device in ("cpu", "npu"):
        tensor = NUMBERS.clone().to(device).requires_grad_()
        function(tensor).square().sum().backward()
        found.append(tensor.grad.cpu())
    torch.testing.assert_close(found[1], found[0])


def check_that_memory_is_moved_at_once() -> None:
    for size in range(100_000, 100_030):
        numbers = torch.arange(size)
        moved = numbers.npu().resize_(3 * size)
        assert torch.equal(moved[:size].cpu(), numbers)


def check_that_torch_npus_own_cast_is_served() -> None:
    """Under the name that its formulas call: up to 2.6 that which users give, whose dtypes are numbers of its own since."""
    moved = NUMBERS.npu()
    own = hasattr(torch.ops.npu, "_npu_dtype_cast")
    cast = (torch.ops.npu._npu_dtype_cast if own else torch_npu.npu_dtype_cast)(moved, torch.bfloat16)
    assert cast.device == moved.device and torch.equal(cast.cpu(), NUMBERS.bfloat16())
    if str(torch.ops.npu.npu_dtype_cast.default._schema.arguments[1].real_type) == "int":
        with pytest.raises(ContractError, match="a dtype by number is not known here"):
            torch_npu.npu_dtype_cast(moved, torch.bfloat16)


def check_gradients_and_the_fused_optimizer() -> None:
    results = []
    for device in ("cpu", "npu"):
        torch.manual_seed(1)
        layer = torch.nn.Linear(3, 4).to(device)
        optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
        layer(NUMBERS.to(device)).square().mean().backward()
        optimizer.step()
        results.append([tensor.detach().cpu() for tensor in (layer.weight, layer.weight.grad)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def check_that_random_numbers_follow_from_the_generator() -> None:
    torch.npu.manual_seed(3)
    first, state = torch.randn(4, device="npu").cpu(), torch.npu.get_rng_state()
    second = torch.randn(4, device="npu").cpu()
    assert not torch.equal(first, second)
    torch.npu.set_rng_state(state)
    assert torch.equal(torch.randn(4, device="npu").cpu(), second)
    of_host = torch.get_rng_state()
    ones = torch.ones(64, device="npu", requires_grad=True)
    kept = torch.nn.functional.dropout(ones, 0.5)
    assert torch.equal(torch.get_rng_state(), of_host) and set(kept.tolist()) == {0.0, 2.0}
    assert torch.equal(torch.autograd.grad(kept.sum(), ones)[0].cpu(), kept.detach().cpu())


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda moved: torch_npu.npu_silu(moved), Unserved, "npu::npu_silu: no kernel of the emulated NPU serves it"),
        (lambda moved: moved + NUMBERS, RuntimeError, "expected all tensors on the NPU, but found one on cpu"),
        (lambda moved: moved + NUMBERS.to("npu:1"), RuntimeError, "found tensors on npu:0 and npu:1"),
        (lambda moved: torch_npu.npu_swiglu(moved.t()), ContractError, "empty or not contiguous"),
    ],
)
def check_that_what_it_does_not_serve_raises(
    call: Callable[[torch.Tensor], Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        call(NUMBERS.npu())


def check_that_the_libraries_refuse_by_themselves() -> None:
    """Should torch_npu reach for them past the kernels of the dispatcher."""
    libraries = ctypes.CDLL("libascendcl.so")
    assert libraries.aclopCompileAndExecute() != 0 and libraries.HcclAllReduce() != 0


def check_collectives_of_one_and_their_contract() -> None:
    dist.init_process_group("hccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        moved = NUMBERS.npu()
        dist.all_reduce(moved, op=dist.ReduceOp.AVG)
        dist.barrier()
        assert torch.equal(moved.cpu(), NUMBERS)
        with pytest.raises(ContractError, match="takes tensors of the NPU, not of cpu"):
            dist.all_reduce(NUMBERS)
        with pytest.raises(ContractError, match="HCCL does not take torch.bool"):
            dist.all_reduce(moved.bool())
        with pytest.raises(ContractError, match="not contiguous"):
            dist.broadcast(moved.t(), 0)
    finally:
        dist.destroy_process_group()
