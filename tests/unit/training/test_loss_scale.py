"""fp16: gradients that do not fit move nothing but the loss scale, which a resume goes on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mindspeed_ift.config.layout import LayoutFlags
from mindspeed_ift.config.tuning import OptimizerFlags
from mindspeed_ift.data.batch import Batch
from mindspeed_ift.devices.device import current
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.training import loss_scale, state
from mindspeed_ift.training.optimizer import build_optimizer, build_schedule, weights_dtype, wrap
from mindspeed_ift.training.saving import Saver
from mindspeed_ift.training.step import StepReport, train_step
from tests.tiny_model import tiny_model


def batch(seed: int) -> Batch:
    """Two rows of twelve tokens, all learnt."""
    ids = torch.randint(30, (2, 13), generator=torch.Generator().manual_seed(seed))
    return Batch(ids[:, :-1], ids[:, 1:], torch.ones(2, 12), torch.arange(12).expand(2, 12))


class Run:
    """A model with its optimizer and schedule."""

    def __init__(self, groups: Groups, *, distributed: bool = False, **flags: float | bool) -> None:
        self.groups, self.distributed = groups, distributed
        layout = LayoutFlags(use_distributed_optimizer=distributed)
        options = OptimizerFlags(lr=1e-2, train_iters=99, **flags)  # type: ignore[arg-type]
        torch.manual_seed(5)
        self.stage = tiny_model(groups, dtype=weights_dtype(options))
        self.model = wrap([self.stage], layout)
        self.optimizer = build_optimizer(self.model, options, layout)
        self.schedule = build_schedule(self.optimizer, options)

    def step(self, seed: int) -> StepReport:
        """One update."""
        return train_step(self.model, self.optimizer, self.schedule, [batch(seed)], self.groups, current())

    @property
    def trained(self) -> state.Trained:
        """All that a checkpoint is made of."""
        return state.Trained(
            [self.stage], self.optimizer, self.schedule, self.groups, current(), distributed_optimizer=self.distributed
        )

    def weights(self) -> torch.Tensor:
        """All of them, in a row."""
        return torch.cat([one.detach().float().flatten() for one in self.stage.parameters()])


def in_fp32(run: Run) -> Run:
    """A run with the same weights in fp32."""
    exact = Run(run.groups, clip_grad=0.0)
    with torch.no_grad():
        for mine, theirs in zip(exact.stage.parameters(), run.stage.parameters(), strict=True):
            mine.copy_(theirs)
    return exact


def test_it_learns_as_fp32_does(groups: Groups) -> None:
    half = Run(groups, fp16=True, initial_loss_scale=1024.0, clip_grad=0.0)
    single = in_fp32(half)
    for seed in range(8):
        mine, theirs = half.step(seed % 2), single.step(seed % 2)
        assert mine.loss_scale == 1024 and not mine.overflow and mine.refusal is None and theirs.loss_scale is None
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-2)
        assert seed or mine.gradient_norm == pytest.approx(theirs.gradient_norm, rel=5e-3)


def test_a_scale_takes_small_gradients_through_sixteen_bits(groups: Groups) -> None:
    """Of tokens that weigh so little that unscaled they are under the smallest number of fp16."""
    one = batch(1)
    light = Batch(one.tokens, one.labels, one.loss_mask * 1e-8, one.position_ids)

    def norm(run: Run) -> float:
        return train_step(run.model, run.optimizer, run.schedule, [light], groups, current()).gradient_norm

    small, large = (Run(groups, fp16=True, loss_scale=scale, clip_grad=0.0) for scale in (1.0, 65536.0))
    expected = norm(in_fp32(large))
    assert norm(large) == pytest.approx(expected, rel=2e-2) and norm(small) < expected / 2


@pytest.mark.parametrize("distributed", [False, True])
def test_an_overflow_moves_the_scale_and_nothing_else(groups: Groups, distributed: bool) -> None:
    run = Run(groups, distributed=distributed, fp16=True, initial_loss_scale=2.0**24, hysteresis=2)
    before, reports = run.weights(), []
    while not reports or reports[-1].overflow:
        assert torch.equal(run.weights(), before) and run.schedule.num_steps == 0
        reports.append(run.step(1))
        assert reports[-1].refusal is None and len(reports) < 30
    scales = [report.loss_scale for report in reports]
    assert scales[:3] == [2.0**24, 2.0**24, 2.0**23] and len(scales) > 4  # two overflows before the first halving
    assert run.schedule.num_steps == 1 and not torch.equal(run.weights(), before)


def test_at_the_lowest_scale_an_overflow_is_refused(groups: Groups) -> None:
    """So it is where the scale is fixed: nothing would change."""
    for flags in ({"min_loss_scale": 2.0**30, "initial_loss_scale": 2.0**30}, {"loss_scale": 2.0**30}):
        run = Run(groups, fp16=True, **flags)
        before = run.weights()
        report = run.step(1)
        assert report.refusal is not None and report.refusal.startswith("the gradient norm is") and not report.overflow
        assert torch.equal(run.weights(), before) and run.schedule.num_steps == 0


def test_the_scale_goes_on_where_it_was(groups: Groups) -> None:
    """Through JSON, to the step at which it doubles."""
    flags = {"fp16": True, "initial_loss_scale": 256.0, "loss_scale_window": 3}
    whole, resumed = Run(groups, **flags), Run(groups, **flags)
    for seed in range(2):
        whole.step(seed)
    state = json.loads(json.dumps(loss_scale.state_of(whole.optimizer)))
    loss_scale.restore(resumed.optimizer, state)
    scales = [[run.step(seed).loss_scale for seed in range(3)] for run in (whole, resumed)]
    assert scales[0] == scales[1] == [256.0, 512.0, 512.0]
    assert loss_scale.state_of(Run(groups).optimizer) is None
    loss_scale.restore(resumed.optimizer, None)
    assert resumed.step(1).loss_scale == 512.0


@pytest.mark.parametrize("ckpt_format", ["torch_dist", "torch"])
@pytest.mark.parametrize("distributed", [False, True])
def test_a_loaded_run_goes_on_to_the_bit(tmp_path: Path, groups: Groups, ckpt_format: str, distributed: bool) -> None:
    flags = {"fp16": True, "initial_loss_scale": 256.0, "loss_scale_window": 3, "distributed": distributed}
    first, second = Run(groups, **flags), Run(groups, **flags)
    for seed in range(2):
        first.step(seed)
    state.save(Saver(tmp_path, groups), 2, first.trained, ckpt_format, {})
    folder = tmp_path / "iter_0000002"
    state.load_model(folder, [second.stage], groups)
    state.load_training(folder, second.trained, load_random=True)
    for seed in (5, 6):
        mine, theirs = first.step(seed), second.step(seed)
        assert mine == theirs and mine.loss_scale == (256 if seed == 5 else 512)
    assert torch.equal(first.weights(), second.weights())
