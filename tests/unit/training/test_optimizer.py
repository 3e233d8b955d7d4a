"""The schedule against formulas written out, and one update of AdamW against one written out."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from mindspeed_ift.config.layout import LayoutFlags
from mindspeed_ift.config.tuning import OptimizerFlags
from mindspeed_ift.devices import device
from mindspeed_ift.devices.kernels.table import PLAIN
from mindspeed_ift.training.optimizer import build_optimizer, build_schedule, restored, wrap
from tests.tiny_model import tiny_model, world_of_one
from tests.tolerances import KERNEL, KERNEL_BF16

HIGH, LOW = 1e-3, 1e-4


def rates(steps: int, **flags: object) -> list[float]:
    """Learning rates of the first steps."""
    options = {"lr": HIGH, "min_lr": LOW, "train_iters": 10, **flags}
    optimizer = SimpleNamespace(param_groups=[{"params": [], "lr": 0.0, "weight_decay": 0.0}])
    schedule = build_schedule(optimizer, OptimizerFlags(**options))  # type: ignore[arg-type]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        schedule.step(increment=1)
    return found


@pytest.mark.parametrize(
    ("style", "share"),
    [
        ("constant", lambda ratio: 1.0),
        ("linear", lambda ratio: 1.0 - ratio),
        ("cosine", lambda ratio: (1.0 + math.cos(math.pi * ratio)) / 2),
    ],
)
@pytest.mark.parametrize("warmup", [0, 3])
def test_each_style_step_by_step(style: str, share, warmup: int) -> None:  # noqa: ANN001
    expected = [
        HIGH * step / warmup if step < warmup else LOW + share((step - warmup) / (10 - warmup)) * (HIGH - LOW)
        for step in range(10)
    ]
    assert rates(10, lr_decay_style=style, lr_warmup_iters=warmup) == pytest.approx(expected, rel=1e-12)


def test_after_the_decay_the_lowest_rate_stays() -> None:
    found = rates(10, lr_decay_style="cosine", lr_decay_iters=4)
    assert found[4] == pytest.approx(LOW) and found[5:] == pytest.approx([LOW] * 5) and found[3] > LOW
    assert rates(10, lr_decay_style="constant", lr_decay_iters=4) == pytest.approx([HIGH] * 10)


def test_warm_up_as_a_share_of_the_decay_and_from_a_start() -> None:
    assert rates(4, lr_warmup_fraction=0.3) == pytest.approx(rates(4, lr_warmup_iters=3))
    found = rates(4, lr_warmup_iters=2, lr_warmup_init=2e-4)
    assert found[:3] == pytest.approx([2e-4, 6e-4, HIGH])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_layers_add_to_their_gradients(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Over two micro-batches, by the kernel of the table, and by nothing else."""
    added, found = [], {}
    kernel = device.current().kernels.add_product

    def counted(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
        added.append((left.dtype, total.shape))
        kernel(total, left, right)

    with world_of_one() as groups:
        plain = tiny_model(groups, dtype=dtype)
        model = tiny_model(groups, dtype=dtype)
        model.load_state_dict(plain.state_dict())
        table = dataclasses.replace(device.current(), kernels=dataclasses.replace(PLAIN, add_product=counted))
        monkeypatch.setattr("mindspeed_ift.training.optimizer.current", lambda: table)
        (wrapped,) = wrap([model], LayoutFlags())
        wrapped.zero_grad_buffer()
        for start in (0, 5):
            tokens = torch.arange(start, start + 12)[None]
            rest = {"labels": tokens + 1, "loss_mask": torch.ones(1, 12)}
            for one in (plain, wrapped):
                one(tokens, torch.arange(12)[None], None, **rest).backward()
            for name, parameter in plain.named_parameters():
                found[name] = found.get(name, 0) + parameter.grad.float()
                parameter.grad = None
        for name, parameter in model.named_parameters():
            allowed = KERNEL if dtype is torch.float32 else {"atol": KERNEL_BF16 * found[name].abs().max(), "rtol": 0}
            assert torch.allclose(parameter.main_grad, found[name], **allowed), name
            assert parameter.grad is None
    linear = [name for name in found if "linear" in name and "norm" not in name]
    assert len(added) == 2 * len(linear) == 16 and {one for one, _ in added} == {dtype}


@pytest.mark.parametrize("distributed", [False, True], ids=["whole", "distributed"])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_one_update_written_out(distributed: bool, clip: float) -> None:
    """Clipped gradient, moments, decoupled decay on matrices and none on norms."""
    adam = {"weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_eps": 1e-6}
    flags = OptimizerFlags(lr=1e-2, clip_grad=clip, train_iters=1, lr_decay_style="constant", **adam)
    layout = LayoutFlags(use_distributed_optimizer=distributed)
    with world_of_one() as groups:
        model = wrap([tiny_model(groups)], layout)
        optimizer = build_optimizer(model, flags, layout)
        build_schedule(optimizer, flags)  # it also tells each group its weight decay
        before, gradients = {}, {}
        for number, (name, parameter) in enumerate(model[0].module.named_parameters()):
            before[name] = parameter.detach().clone()
            gradients[name] = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.main_grad.copy_(gradients[name])
        _, norm, _ = optimizer.step()
        total = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients.values()))
        assert norm == pytest.approx(total, rel=1e-6)
        scale = min(1.0, clip / (total + 1e-6)) if clip else 1.0
        for name, parameter in model[0].module.named_parameters():
            gradient, decay = gradients[name] * scale, 0.1 if before[name].dim() > 1 else 0.0
            # Of the first step: each moment is (1 - beta) of the gradient, and is divided by as much.
            step = gradient / (gradient.abs() + 1e-6)
            expected = before[name] * (1 - 1e-2 * decay) - 1e-2 * step
            torch.testing.assert_close(parameter.detach(), expected, atol=1e-6, rtol=1e-5, msg=name)


def test_overlap_leaves_its_hooks() -> None:
    layout = LayoutFlags(use_distributed_optimizer=True, overlap_grad_reduce=True, overlap_param_gather=True)
    flags = OptimizerFlags(train_iters=1)
    with world_of_one() as groups:
        plain = wrap([tiny_model(groups)], LayoutFlags())
        build_optimizer(plain, flags, LayoutFlags())
        overlapped = wrap([tiny_model(groups)], layout)
        build_optimizer(overlapped, flags, layout)
        assert plain[0].config.no_sync_func is None and plain[0].config.param_sync_func is None
        assert overlapped[0].config.no_sync_func is not None and overlapped[0].config.param_sync_func is not None
        assert plain[0].config.finalize_model_grads_func is not None and plain[0].config.grad_scale_func is not None


def test_the_fused_update_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device's table has it; the weights after two updates are those of the plain one."""
    found = []
    with world_of_one() as groups:
        for fused in (False, True):
            table = dataclasses.replace(device.current(), kernels=dataclasses.replace(PLAIN, fused_adamw=fused))
            monkeypatch.setattr("mindspeed_ift.training.optimizer.current", lambda table=table: table)
            torch.manual_seed(0)
            stage = tiny_model(groups)
            optimizer = build_optimizer(
                wrap([stage], LayoutFlags()), OptimizerFlags(lr=1e-2, train_iters=2), LayoutFlags()
            )
            assert all(bool(group.get("fused")) == fused for group in optimizer.param_groups)
            for seed in range(2):
                generator = torch.Generator().manual_seed(seed)
                for parameter in stage.parameters():
                    parameter.main_grad.copy_(torch.randn(parameter.shape, generator=generator))
                optimizer.step()
            found.append([parameter.detach().clone() for parameter in stage.parameters()])
    for plain, other in zip(*found):
        torch.testing.assert_close(other, plain, **KERNEL)


@pytest.mark.parametrize("fused", [False, True])
def test_a_fused_update_counts_its_steps_on_the_device(fused: bool) -> None:
    """torch refuses a fused update whose count is elsewhere than its weights; a checkpoint's is on the host."""
    weight = torch.nn.Parameter(torch.empty(3, device="meta"))
    inner = torch.optim.AdamW([weight])
    inner.param_groups[0]["fused"] = fused
    inner.state[weight] = {"step": torch.tensor(4.0)}
    restored(SimpleNamespace(optimizer=inner))
    assert inner.state[weight]["step"].device.type == ("meta" if fused else "cpu")
