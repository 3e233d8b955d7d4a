"""CUDA's kernels, on CPU tensors: which serve, and that each equals its plain twin, gradients included."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mindspeed_ift.devices import device
from mindspeed_ift.devices.kernels import cuda, flash, flex, reference
from mindspeed_ift.devices.kernels.blocks import merge
from mindspeed_ift.devices.kernels.probes import TOLERANCES, deviations
from mindspeed_ift.devices.kernels.table import PLAIN, SWITCH, Kernels, with_fused
from mindspeed_ift.model.build import ModelOptions, build_model
from tests.tiny_model import tiny_architecture, world_of_one
from tests.tolerances import ATTENTION_BF16, KERNEL_BF16
from tests.unit.devices import flash_stand_ins

CPU = torch.device("cpu")
HOPPER = (9, 0)
NONE = "this torch has no varlen_attn, flash-attn is not installed"
BUILT_IN = pytest.mark.skipif(
    importlib.util.find_spec("torch.nn.attention.varlen") is None, reason="torch before 2.10 has no varlen_attn"
)
FORWARD = {"varlen_attn": "_flash_attention_forward", "flash-attn": "flash_attn_varlen_func"}
BACKWARD = {"varlen_attn": "_flash_attention_backward", "flash-attn": "_flash_attn_varlen_backward"}


def pretend_flash_attn(monkeypatch: pytest.MonkeyPatch, version: str = "2.8.3") -> None:
    """The stand-in is installed."""
    find, ask = importlib.util.find_spec, importlib.metadata.version
    monkeypatch.setattr(
        flash.importlib.util, "find_spec", lambda name: object() if name == "flash_attn" else find(name)
    )
    monkeypatch.setattr(flash, "version", lambda name: version if name == "flash_attn" else ask(name))
    for name, module in flash_stand_ins.package().items():
        monkeypatch.setitem(sys.modules, name, module)


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(flash.importlib.util, "find_spec", lambda name: None if name in packages else find(name))


@pytest.fixture(params=[pytest.param("varlen_attn", marks=BUILT_IN), "flash-attn"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[flash.Flash]:
    flash._spans.cache_clear()
    flash_stand_ins.CALLS.clear()
    operators = flash_stand_ins.install()
    if request.param == "flash-attn":
        pretend_flash_attn(monkeypatch)
    found = flash.of_torch() if request.param == "varlen_attn" else flash.of_flash_attn()
    assert found is not None and found.label == request.param
    yield found
    operators._destroy()


def table_of(library: flash.Flash) -> Kernels:
    names = ("attention", "attention_forward", "attention_backward")
    return replace(PLAIN, **{name: getattr(library, name) for name in names})


@pytest.mark.parametrize("group", ["attention", "attention of parts"])
def test_attention_is_its_twin(library: flash.Flash, group: str) -> None:
    dtype = torch.bfloat16
    assert 0 < max(deviations(table_of(library), group, CPU, dtype)) <= TOLERANCES[dtype]
    assert {FORWARD[library.label], BACKWARD[library.label]} == set(flash_stand_ins.CALLS)


def test_what_no_flash_attention_takes_is_left_to_the_twin(library: flash.Flash) -> None:
    for group in ("attention", "attention of parts"):
        assert max(deviations(table_of(library), group, CPU, torch.float32)) == 0
    assert not flash_stand_ins.CALLS
    for size in (12, 264):
        assert not flash.fits(torch.empty(1, 1, size, dtype=torch.bfloat16))
    tensors = [torch.randn(5, 1, heads, 12, dtype=torch.bfloat16) for heads in (4, 2, 2)]
    ends = torch.tensor([0, 2, 5], dtype=torch.int32)
    assert torch.equal(library.attention(*tensors, ends), reference.attention(*tensors, ends))
    assert not flash_stand_ins.CALLS


def test_segments_without_tokens_are_left_out_and_ends_go_to_the_device_once(library: flash.Flash) -> None:
    tensors = [torch.randn(6, 2, heads, 8, dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2, 2)]
    ends = torch.tensor([0, 4, 4, 6, 12], dtype=torch.int32)
    for layer in range(3):
        found = library.attention(*tensors, ends)
        assert flash._spans.cache_info().misses == 1, layer
    twin = reference.attention(*tensors, ends)
    assert (found - twin).abs().max() <= ATTENTION_BF16 * twin.abs().max()
    spans = flash._spans((0, 4, 4, 6, 12), (0, 4, 4, 6, 12), CPU)
    assert spans.query_ends.tolist() == [0, 4, 6, 12] and (spans.longest_query, spans.longest_key) == (6, 6)


def test_ends_kept_from_generation_serve_training(library: flash.Flash) -> None:
    tensors = [torch.randn(4, 1, heads, 8, dtype=torch.bfloat16, requires_grad=True) for heads in (2, 2, 2)]
    with torch.inference_mode():
        library.attention(*tensors, None)
    library.attention(*tensors, None).sum().backward()
    assert tensors[0].grad is not None and flash._spans.cache_info().misses == 1


def test_parts_of_a_ring_merge_into_the_whole(library: flash.Flash) -> None:
    """A causal block at home and a rectangle, by flash attention in bf16, against plain torch in fp32."""
    generator = torch.Generator().manual_seed(2)
    query, key, value = (torch.randn(10, heads, 16, generator=generator).bfloat16() for heads in (4, 2, 2))
    grad = torch.randn(query.shape, generator=generator).bfloat16()
    whole = [tensor.float()[:, None].requires_grad_() for tensor in (query, key, value)]
    twin = reference.attention(*whole, None)
    twin_grads = torch.autograd.grad(twin, whole, grad.float()[:, None])
    home = (0, 4, 10)
    away = (query[4:], key[:4], value[:4])
    out, lse = library.attention_forward(query, key, value, home, home, True)
    wide = out.float()
    merge(wide[4:], lse[4:], *library.attention_forward(*away, (0, 6), (0, 4), False))
    out = wide.bfloat16()
    grads = library.attention_backward(grad, query, key, value, out, lse, home, home, True)
    parts = library.attention_backward(grad[4:], *away, out[4:], lse[4:], (0, 6), (0, 4), False)
    assert {one.dtype for one in (*grads, *parts, lse)} == {torch.float32}
    grads[0][4:] += parts[0]
    grads[1][:4] += parts[1]
    grads[2][:4] += parts[2]
    for found, wanted in zip((out, *grads), (twin, *twin_grads)):
        assert (found.float() - wanted[:, 0]).abs().max() <= ATTENTION_BF16 * max(1, float(wanted.abs().max()))


@BUILT_IN
def test_an_older_varlen_attn_is_told_of_the_triangle_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of torch 2.10."""
    heard = []

    def varlen_attn(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        is_causal: bool = False,
        return_aux: object = None,
    ) -> tuple[Tensor, Tensor]:
        heard.append(is_causal)
        return query, query.new_zeros(query.shape[1::-1])

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    found = flash.of_torch()
    assert found is not None
    tensors = [torch.ones(4, heads, 8, dtype=torch.bfloat16) for heads in (4, 2, 2)]
    for causal in (True, False):
        found.attention_forward(*tensors, (0, 4), (0, 4), causal)
    assert heard == [True, False]


LOSS = {"softmax_sums": cuda.softmax_sums, "softmax_gradient": cuda.softmax_gradient}
COMPILED = {
    "rms_norm": {"rms_norm": cuda.rms_norm},
    "swiglu": {"swiglu": cuda.swiglu},
    "rotary": {"rotary": cuda.rotary},
    "cross_entropy": LOSS,
}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Graphs as torch.compile makes them for forward and backward pass, run one operator after another."""
    from torch._dynamo.backends.common import aot_autograd

    graphs: list[object] = []

    def note(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        from functorch.compile import make_boxed_func

        return make_boxed_func(graph.forward)

    monkeypatch.setattr(cuda, "_BACKEND", aot_autograd(fw_compiler=note))
    torch._dynamo.reset()
    cuda._compiled.cache_clear()
    yield graphs
    torch._dynamo.reset()
    cuda._compiled.cache_clear()


def test_compiled_functions_are_their_twins(compiled: list[object]) -> None:
    for group, functions in COMPILED.items():
        found = deviations(replace(PLAIN, **functions), group, CPU, torch.bfloat16)
        assert max(found) <= TOLERANCES[torch.bfloat16], group
    assert compiled
    empty = torch.empty(0, 8, requires_grad=True)
    assert cuda.swiglu(empty).shape == (0, 4)


def test_one_graph_serves_any_number_of_tokens(compiled: list[object]) -> None:
    """Heads (four dimensions) and hidden states (three) have a graph each, and one for their backward pass."""
    weight = torch.ones(8, requires_grad=True)
    for tokens in (6, 7, 11):
        for shape in ((tokens, 1, 8), (tokens, 1, 2, 16)):
            hidden = torch.randn(shape, requires_grad=True)
            cuda.rms_norm(hidden, weight if shape[-1] == 8 else torch.ones(16), 1e-6).sum().backward()
        turns = torch.ones(tokens, 1, 1, 16)
        cuda.rotary(torch.randn(tokens, 1, 2, 16, requires_grad=True), turns, turns).sum().backward()
        cuda.swiglu(torch.randn(tokens, 1, 16, requires_grad=True)).sum().backward()
        columns, ones = torch.arange(tokens), torch.ones(tokens)
        sums = cuda.softmax_sums(torch.randn(tokens, 32), columns)[2]
        cuda.softmax_gradient(torch.randn(tokens, 32), sums, ones, columns, ones)
    assert len(compiled) <= 10


def test_experts_are_multiplied_at_once_where_the_kernel_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 of whole 16 bytes, whoever has no token; else one by one. torch's own, which has a kernel for the CPU too."""
    heard = []
    grouped_mm = cuda.functional.grouped_mm

    def noted(tokens: Tensor, weights: Tensor, offs: Tensor) -> Tensor:
        heard.append(offs.tolist())
        return grouped_mm(tokens, weights, offs=offs)

    monkeypatch.setattr(cuda.functional, "grouped_mm", noted)
    kernels, notice = offered(monkeypatch)
    assert "grouped_mm" in notice
    for dtype in TOLERANCES:
        found = deviations(replace(PLAIN, grouped_matmul=kernels.grouped_matmul), "grouped_matmul", CPU, dtype)
        assert max(found) <= TOLERANCES[dtype]
    weights = torch.ones(2, 8, 4, dtype=torch.bfloat16)
    assert kernels.grouped_matmul(torch.ones(3, 8, dtype=torch.bfloat16), weights, [1, 2]).eq(8).all()
    assert kernels.grouped_matmul(torch.ones(0, 8, dtype=torch.bfloat16), weights, [0, 0]).shape == (0, 4)
    assert heard == [[3, 3, 8]]
    _, notice = offered(monkeypatch, (7, 5))
    assert "grouped_matmul (compute capability 7.5 is below 8.0)" in notice
    monkeypatch.delattr(cuda.functional, "grouped_mm")
    assert "grouped_matmul (this torch has no grouped_mm)" in offered(monkeypatch)[1]


def test_products_of_16_bits_add_to_a_sum_of_32_where_torch_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried once: the operator is for CUDA alone, and its first versions took no such sum."""
    _, notice = offered(monkeypatch)
    assert "linear (this torch does not add products of 16 bits to sums of 32)" in notice
    heard = []

    def dtype_out(total: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype, *, out: Tensor) -> Tensor:
        assert left.dtype is right.dtype is torch.bfloat16 and out is total and total.dtype is dtype is torch.float32
        heard.append(left.shape)
        return out.add_(left.float() @ right.float())

    monkeypatch.setattr(torch.ops.aten.addmm, "dtype_out", dtype_out)
    kernels, notice = offered(monkeypatch)
    assert "products added in fp32" in notice and kernels.linear is reference.linear
    for dtype in TOLERANCES:
        found = deviations(replace(PLAIN, add_product=kernels.add_product), "linear", CPU, dtype)
        assert max(found) <= TOLERANCES[dtype]
    assert heard == [(16, 16), (40, 24)], "the trial, and bf16"


def offered(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = HOPPER) -> tuple[Kernels, str]:
    monkeypatch.delenv(SWITCH, raising=False)
    return with_fused(cuda.offers(capability, CPU))


@pytest.mark.parametrize(
    ("built_in", "packages", "missing", "said"),
    [
        pytest.param(True, [], [], "varlen_attn; ", marks=BUILT_IN),
        pytest.param(True, ["flash_attn"], [], "varlen_attn; ", marks=BUILT_IN),
        (False, ["flash_attn"], [], "flash-attn; "),
        (True, ["flash_attn"], ["torch.nn.attention.varlen"], "flash-attn; "),
        (False, [], ["triton"], f"attention ({NONE}, and for FlexAttention torch.compile needs triton)"),
        (False, [], ["torch.nn.attention.flex_attention"], f"attention ({NONE}, and it has no FlexAttention)"),
    ],
)
def test_which_attention_serves(
    monkeypatch: pytest.MonkeyPatch, built_in: bool, packages: list[str], missing: list[str], said: str
) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: built_in)
    if packages:
        pretend_flash_attn(monkeypatch)
    without(monkeypatch, *missing)
    kernels, notice = offered(monkeypatch)
    assert said in notice and kernels.fused_adamw
    assert (kernels.attention is reference.attention) == said.startswith("attention")
    assert ("plain torch for attention" in notice) == (kernels.attention_backward is reference.attention_backward)


def test_flex_attention_serves_where_no_flash_attention_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of parts of a ring, whose backward pass takes the log-sum-exp of the whole, plain torch does."""
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    find = importlib.util.find_spec
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: object() if name == "triton" else find(name))
    kernels, notice = offered(monkeypatch)
    assert notice.startswith(f"FlexAttention, parts of a ring in plain torch ({NONE}); compiled rms_norm")
    assert kernels.attention is flex.attention and kernels.attention_backward is reference.attention_backward
    assert offered(monkeypatch, (7, 5))[0].attention is reference.attention


def test_an_old_flash_attn_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_flash_attn(monkeypatch, "2.6.3")
    assert flash.of_flash_attn() is None


@pytest.mark.parametrize(
    ("capability", "plain"),
    [
        ((8, 0), []),
        ((7, 5), ["attention (compute capability 7.5 is below 8.0)"]),
        ((6, 1), ["attention", "rms_norm"]),
    ],
)
def test_an_old_device_gets_what_it_can_run(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], plain: list[str]
) -> None:
    pretend_flash_attn(monkeypatch)  # which serves a torch without its own
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    find = importlib.util.find_spec
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: object() if name == "triton" else find(name))
    _, notice = offered(monkeypatch, capability)
    _, *rest = notice.split("plain torch for ")
    assert all(name in rest[0] for name in plain) and ("swiglu" in rest[0]) == (capability < (7, 0))
    assert ("attention" in rest[0]) == bool(plain)


def test_liger_serves_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []

    class LigerRMSNormFunction:
        """As of Liger Kernel 0.5: apply(X, W, eps, offset, casting_mode, in_place)."""

        @staticmethod
        def apply(X: Tensor, W: Tensor, eps: float, offset: float, casting_mode: str, in_place: bool) -> Tensor:
            heard.append((offset, casting_mode, in_place))
            return reference.rms_norm(X, W, eps)

    module = types.ModuleType("liger_kernel.ops.rms_norm")
    module.LigerRMSNormFunction = LigerRMSNormFunction  # type: ignore[attr-defined]
    for name in ("liger_kernel", "liger_kernel.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "liger_kernel.ops.rms_norm", module)
    find = importlib.util.find_spec
    there = ("liger_kernel", "triton")
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: object() if name in there else find(name))
    kernels, notice = offered(monkeypatch)
    assert "Liger's rms_norm" in notice and "compiled rms_norm" not in notice
    assert max(deviations(replace(PLAIN, rms_norm=kernels.rms_norm), "rms_norm", CPU, torch.float32)) == 0
    assert heard == [(0.0, "llama", False)]


def gradients(dtype: torch.dtype) -> dict[str, Tensor]:
    """Of the loss over a packed row of a tiny model, recomputed, with the kernels that `current` has; and the loss."""
    with world_of_one() as groups:
        options = ModelOptions(padded_vocab=32, dtype=dtype, recompute=("full", "uniform", 1))
        model = build_model(tiny_architecture(kv_channels=8), options, groups)
        generator = torch.Generator().manual_seed(3)
        for parameter in model.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
        tokens = torch.randint(30, (1, 17), generator=generator)
        positions = torch.tensor([[*range(5), *range(7), *range(4)]])
        ends = torch.tensor([0, 5, 12, 16], dtype=torch.int32)
        loss = model(tokens[:, :-1], positions, ends, labels=tokens[:, 1:], loss_mask=torch.ones(1, 16))
        loss.backward()
        found = {name: parameter.grad.float() for name, parameter in model.named_parameters()}
        return found | {"loss": loss.detach()}


def test_a_model_learns_the_same(monkeypatch: pytest.MonkeyPatch, compiled: list[object]) -> None:
    """In bf16 with all of them, as far from plain torch in fp32 as plain torch in bf16 is, give or take."""
    wanted, plain = gradients(torch.float32), gradients(torch.bfloat16)
    library = "varlen_attn" if flash.of_torch() is not None else "flash-attn"
    operators = flash_stand_ins.install()
    flash_stand_ins.CALLS.clear()
    flash._spans.cache_clear()
    if library == "flash-attn":
        pretend_flash_attn(monkeypatch)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    find = importlib.util.find_spec
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: object() if name == "triton" else find(name))
    monkeypatch.setitem(device.KERNELS, "cpu", lambda _: offered(monkeypatch))
    device.current.cache_clear()
    try:
        assert device.current().kernels.rms_norm is cuda.rms_norm
        found = gradients(torch.bfloat16)
    finally:
        monkeypatch.undo()
        device.current.cache_clear()
        operators._destroy()
    assert set(flash_stand_ins.CALLS) == {FORWARD[library], BACKWARD[library]} and compiled
    for name, value in wanted.items():
        scale = float(value.abs().max())
        deviation, usual = (float((one[name] - value).abs().max()) for one in (found, plain))
        assert deviation <= usual + KERNEL_BF16 * scale, name
