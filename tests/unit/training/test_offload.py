"""An optimizer on the host moves the weights as one on the device; the device is played by the CPU."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from mindspeed_ift.config.layout import LayoutFlags
from mindspeed_ift.config.tuning import OptimizerFlags
from mindspeed_ift.devices.device import current
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.training import optimizer as optimizers
from mindspeed_ift.training.optimizer import build_optimizer, build_schedule, restored, update, wrap
from tests.tiny_model import tiny_model

LAYOUT = LayoutFlags(use_distributed_optimizer=True)


class Run:
    """A model whose optimizer keeps some share of its state on the host; none: all of it is on the device."""

    def __init__(self, groups: Groups, share: float) -> None:
        self.stage = tiny_model(groups, dtype=torch.bfloat16)
        flags = OptimizerFlags(lr=1e-2, train_iters=9, bf16=True)
        if share:
            flags = dataclasses.replace(flags, optimizer_cpu_offload=True, optimizer_offload_fraction=share)
        with torch.no_grad():
            for number, parameter in enumerate(self.stage.parameters()):
                parameter.copy_(drawn(parameter, number))
        with pytest.MonkeyPatch.context() as patch:
            if share:
                play_a_device(patch)
            self.optimizer = build_optimizer(wrap([self.stage], LAYOUT), flags, LAYOUT)
        self.schedule = build_schedule(self.optimizer, flags)
        (part,) = self.optimizer.chained_optimizers
        self.inner = part.optimizer

    def step(self, seed: int) -> list[torch.Tensor]:
        """The weights after an update with gradients drawn from ``seed``."""
        for number, parameter in enumerate(self.stage.parameters()):
            parameter.main_grad.copy_(drawn(parameter, 100 * seed + number))
        update(self.optimizer)
        self.schedule.step(increment=1)
        return [parameter.detach().clone() for parameter in self.stage.parameters()]

    def main_weights(self) -> list[torch.Tensor]:
        """What the optimizer moves, in fp32."""
        return [parameter for group in self.inner.param_groups for parameter in group["params"]]


def drawn(like: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)) / 10


def play_a_device(patch: pytest.MonkeyPatch) -> None:
    """All tensors lie on a device, but for what is moved to the host."""
    to_host = torch.Tensor.cpu

    def cpu(tensor: torch.Tensor) -> torch.Tensor:
        copy = to_host(tensor)
        copy.on_host = True  # type: ignore[attr-defined]
        return copy

    patch.setattr(torch.Tensor, "cpu", cpu)
    patch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: not hasattr(tensor, "on_host")))
    patch.setattr(optimizers, "current", lambda: dataclasses.replace(current(), kind="cuda"))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_an_optimizer_on_the_host_moves_the_weights_alike(groups: Groups, share: float) -> None:
    plain, run = Run(groups, 0), Run(groups, share)
    offloaded = run.inner.gpu_params_map_cpu_copy
    assert bool(run.inner.gpu_optimizer) is (share < 1)
    counts = [sum(one.numel() for one in some) for some in (offloaded, run.main_weights())]
    assert share <= counts[0] / counts[1] < share + 0.5
    for seed in range(4):
        for mine, theirs in zip(run.step(seed), plain.step(seed), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-6)


def test_what_is_on_the_host_follows_a_resume(groups: Groups) -> None:
    """Weights and state are put where the optimizer has them, as a checkpoint is loaded; the next steps are the same."""
    stopped, resumed = Run(groups, 0.5), Run(groups, 0.5)
    for seed in range(3):
        stopped.step(seed)
    resumed.stage.load_state_dict(stopped.stage.state_dict())
    for mine, theirs in zip(resumed.main_weights(), stopped.main_weights(), strict=True):
        mine.data.copy_(theirs)
        resumed.inner.state[mine] = _copied(stopped.inner.state[theirs])
    restored(resumed.optimizer)
    resumed.schedule.num_steps = stopped.schedule.num_steps
    resumed.schedule.step(increment=0)
    for seed in range(3, 6):
        assert all(map(torch.equal, resumed.step(seed), stopped.step(seed)))


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: state[name].clone() for name in ("step", "exp_avg", "exp_avg_sq")}


def test_on_the_cpu_nothing_is_moved(groups: Groups) -> None:
    flags = OptimizerFlags(lr=1e-2, train_iters=9, bf16=True, optimizer_cpu_offload=True)
    optimizer = build_optimizer(wrap([tiny_model(groups, dtype=torch.bfloat16)], LAYOUT), flags, LAYOUT)
    (part,) = optimizer.chained_optimizers
    assert type(part.optimizer) is torch.optim.AdamW
    restored(optimizer)
