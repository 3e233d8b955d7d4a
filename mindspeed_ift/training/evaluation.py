"""The loss over the samples to evaluate on, each counted once in every layout."""

from __future__ import annotations

from typing import Any

import torch

from mindspeed_ift.data.batch import Batch
from mindspeed_ift.devices.device import Device
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.training.plan import Plan
from mindspeed_ift.training.step import evaluate_step


def evaluate(plan: Plan, model: Any, groups: Groups, device: Device) -> float | None:
    """Mean loss over at most ``--eval-iters`` global batches of the validation samples, in their order.

    The mean is that of ``--loss-reduction``; with micro-batch over learnt tokens, since which samples share a micro-batch is
    a matter of the layout.

    Returns:
        None where there is no sample, or none with a learnt token.
    """
    batches = _batches(plan, groups.data_rank)
    if not batches:
        return None
    loss, units = evaluate_step(model, batches, groups, device)
    return loss / units if units else None


def _batches(plan: Plan, data_rank: int) -> list[Batch]:
    """Each validation sample once: where the last batches are not full, their rows start over and count nothing."""
    micro = plan.config.optimizer.micro_batch_size
    per_pass = micro * plan.layout.data
    passes = min(plan.config.run.eval_iters * plan.micro_batches, -(-len(plan.valid) // per_pass))
    if not passes:
        return []
    if plan.layout.chunks(plan.architecture.num_layers) > 1:  # the interleaved schedule takes whole rounds
        passes = -(-passes // plan.layout.pipeline) * plan.layout.pipeline
    batches = plan.validation_samples(data_rank).take(0, passes)
    own = torch.arange(micro) + data_rank * micro
    return [batch.without_rows(own + number * per_pass >= len(plan.valid)) for number, batch in enumerate(batches)]
