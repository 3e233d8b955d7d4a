"""A step whose loss or gradient norm is not finite moves nothing; and how the update treats one that is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_ift.config.layout import LayoutFlags
from mindspeed_ift.config.profiling import ProfileFlags
from mindspeed_ift.config.tuning import OptimizerFlags
from mindspeed_ift.data.batch import Batch
from mindspeed_ift.devices.device import current
from mindspeed_ift.model import head
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.training.optimizer import build_optimizer, build_schedule, wrap
from mindspeed_ift.training.profiling import Profile
from mindspeed_ift.training.step import StepReport, train_step
from tests.tiny_model import tiny_model


def batch(seed: int, weight: float = 1.0) -> Batch:
    """Two rows of twelve tokens, all learnt."""
    ids = torch.randint(30, (2, 13), generator=torch.Generator().manual_seed(seed))
    positions = torch.arange(12).expand(2, 12)
    return Batch(ids[:, :-1], ids[:, 1:], torch.full((2, 12), weight), positions)


class Run:
    """A model with its optimizer and schedule."""

    def __init__(self, groups: Groups, *, bf16: bool = False, distributed: bool = False, clip: float = 1.0) -> None:
        self.groups = groups
        layout = LayoutFlags(use_distributed_optimizer=distributed)
        flags = OptimizerFlags(lr=1e-2, train_iters=9, bf16=bf16, clip_grad=clip)
        self.stage = tiny_model(groups, dtype=torch.bfloat16 if bf16 else torch.float32)
        self.model = wrap([self.stage], layout)
        self.optimizer = build_optimizer(self.model, flags, layout)
        self.schedule = build_schedule(self.optimizer, flags)

    def step(self, *batches: Batch, stop: bool = False) -> StepReport:
        """One update."""
        return train_step(self.model, self.optimizer, self.schedule, batches, self.groups, current(), lambda: stop)

    def state(self) -> list[Any]:
        """All that a step may change, copied: weights, main weights, moments and their steps, rate, schedule."""
        (part,) = self.optimizer.chained_optimizers
        kept: list[Any] = [one.detach().clone() for one in self.stage.parameters()]
        for group in part.optimizer.param_groups:
            kept.append(group["lr"])
            for parameter in group["params"]:
                state = part.optimizer.state[parameter]
                kept += [parameter.detach().clone(), *(torch.as_tensor(state[key]).clone() for key in sorted(state))]
        return [*kept, self.schedule.num_steps]


def same(ours: list[Any], theirs: list[Any]) -> bool:
    """To the bit."""
    return len(ours) == len(theirs) and all(
        torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other
        for mine, other in zip(ours, theirs, strict=True)
    )


KINDS = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize(("bf16", "distributed", "weight"), [(False, True, math.nan), (True, False, math.inf)])
def test_a_loss_that_is_not_finite_moves_nothing(groups: Groups, bf16: bool, distributed: bool, weight: float) -> None:
    """And the next step is as if it had not been."""
    refusing, other = (Run(groups, bf16=bf16, distributed=distributed) for _ in "ab")
    other.stage.load_state_dict(refusing.stage.state_dict())
    other.optimizer.reload_model_params()
    for run in (refusing, other):
        assert run.step(batch(1), batch(2)).refusal is None
    before = refusing.state()
    report = refusing.step(batch(3), batch(4, weight))
    assert report.refusal is not None and report.refusal.startswith("the loss is")
    assert same(refusing.state(), before)
    mine, theirs = (run.step(batch(5), batch(6)) for run in (refusing, other))
    assert mine == theirs and same(refusing.state(), other.state()) and not same(refusing.state(), before)


@pytest.mark.parametrize(("bf16", "distributed"), KINDS, ids=["fp32", "bf16", "fp32 split", "bf16 split"])
def test_a_gradient_that_is_not_finite_moves_nothing(groups: Groups, bf16: bool, distributed: bool) -> None:
    run = Run(groups, bf16=bf16, distributed=distributed, clip=1.0 if bf16 else 0.0)
    run.step(batch(1))
    before = run.state()
    layer = run.stage.decoder.layers[1].mlp
    hook = layer.register_full_backward_hook(lambda module, given, taken: (given[0] * math.inf,))
    report = run.step(batch(2))
    hook.remove()
    assert math.isfinite(report.loss) and report.refusal in ("the gradient norm is nan", "the gradient norm is inf")
    assert same(run.state(), before)
    assert run.step(batch(2)).refusal is None and not same(run.state(), before)


def test_the_norm_is_clipped_as_asked(groups: Groups) -> None:
    """Adam's first moment after one step is (1 - beta1) times the clipped gradient."""
    clipped, whole = Run(groups, clip=0.01), Run(groups, clip=0.0)
    whole.stage.load_state_dict(clipped.stage.state_dict())
    norms = [run.step(batch(1)).gradient_norm for run in (clipped, whole)]
    assert norms[0] == norms[1] > 0.01
    sizes = []
    for run in (clipped, whole):
        state = run.optimizer.chained_optimizers[0].optimizer.state.values()
        sizes.append(math.sqrt(sum(float((one["exp_avg"] ** 2).sum()) for one in state)) / 0.1)
    assert sizes == pytest.approx([0.01, norms[0]], rel=1e-4)


def test_nothing_learnt_moves_nothing_and_is_no_refusal(groups: Groups) -> None:
    run = Run(groups)
    weights = run.state()[: len(list(run.stage.parameters()))]
    report = run.step(batch(1, 0.0))
    assert report.refusal is None and report.learnt_tokens == 0 and report.loss == 0.0 and run.schedule.num_steps == 1
    assert same(run.state()[: len(weights)], weights)


def test_a_trace_names_the_parts_of_a_step(groups: Groups, tmp_path: Path) -> None:
    """One file a chosen rank, as chrome://tracing and TensorBoard read it."""
    run, flags = Run(groups), ProfileFlags(profile=True, profile_step_start=2, profile_step_end=3)
    profile = Profile(flags, tmp_path, current(), groups.rank)
    for step in (1, 2, 3):
        profile.begin(step)
        run.step(batch(step), batch(step))
        profile.end(step)
    (path,) = tmp_path.iterdir()
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    named = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert named.count("forward_backward") == named.count("optimizer_step") == 1
    (whole,) = (event for event in events if event["name"] == "forward_backward")
    inside = [event["name"] for event in events if whole["ts"] <= event["ts"] <= whole["ts"] + whole["dur"]]
    assert inside.count("aten::silu") == inside.count("aten::silu_backward") == 2 * run.stage.config.num_layers


def test_a_request_to_stop_comes_with_the_totals(groups: Groups) -> None:
    run = Run(groups)
    assert [run.step(batch(1), stop=stop).stop for stop in (False, True)] == [False, True]


def test_learnt_positions_are_found_on_the_host(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output layer is told, so that no step waits for the device in its middle."""
    told = []
    whole = head.loss_sum

    def listening(
        hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, **rest: Any
    ) -> Any:
        told.append((rest["positions_L"], head.learnt_positions(mask)))
        return whole(hidden, weight, labels, mask, **rest)

    monkeypatch.setattr(head, "loss_sum", listening)
    one = batch(1)
    one.loss_mask[:, 3:7] = 0
    one.loss_mask[1, 0] = 0
    report = Run(groups).step(one, batch(2))
    assert report.learnt_tokens == 15 + 24 and [len(found) for found, _ in told] == [15, 24]
    assert all(torch.equal(found, expected) for found, expected in told)
