"""One optimizer step: micro-batches, forward, token-weighted loss, backward, update."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mindspeed_ift.config.errors import RunError
from mindspeed_ift.data.batch import Batch
from mindspeed_ift.devices.device import Device
from mindspeed_ift.mcore import DistributedDataParallel, OptimizerParamScheduler, get_forward_backward_func
from mindspeed_ift.parallel.context.split import local_positions
from mindspeed_ift.parallel.groups import Groups


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        loss: mean over the learnt tokens of the global batch, each times its weight if it has one.
        gradient_norm: before clipping.
        learning_rate: of this step.
        learnt_tokens: tokens with a label, over all replicas.
        tokens: tokens with pads, over all replicas.
    """

    loss: float
    gradient_norm: float
    learning_rate: float
    learnt_tokens: int
    tokens: int


def train_step(
    model: list[DistributedDataParallel],
    optimizer: Any,
    schedule: OptimizerParamScheduler,
    batches: Sequence[Batch],
    groups: Groups,
    device: Device,
) -> StepReport:
    """Forward, backward and update over the micro-batches of this replica.

    The gradient is that of the loss sum divided by the learnt tokens of the *global* batch, so that packing, accumulation
    and replicas change nothing. A global batch without a learnt token moves no weight.

    Raises:
        RunError: the loss or the gradient norm is not finite; raised before the weights are touched by the loss.
    """
    for stage in model:
        stage.zero_grad_buffer()
    optimizer.zero_grad()
    totals = _forward_backward(model, batches, groups, device, forward_only=False)
    if not math.isfinite(totals[0]):
        raise RunError(f"the loss is {totals[0]}: look at the data, or lower --lr")
    learning_rate = optimizer.param_groups[0]["lr"]
    gradient_norm = 0.0
    if totals[1] > 0:
        _, norm, _ = optimizer.step()
        gradient_norm = float(norm) if norm is not None else 0.0
        if not math.isfinite(gradient_norm):
            raise RunError(f"the gradient norm is {gradient_norm}: look at the data, or lower --lr")
    schedule.step(increment=1)
    learnt = max(totals[1], 1.0)
    return StepReport(totals[0] / learnt, gradient_norm, learning_rate, int(totals[1]), int(totals[2]))


def evaluate_step(
    model: list[DistributedDataParallel], batches: Sequence[Batch], groups: Groups, device: Device
) -> tuple[float, float]:
    """(loss sum, learnt tokens) over all replicas, without gradients."""
    for stage in model:
        stage.eval()
    with torch.no_grad():
        totals = _forward_backward(model, batches, groups, device, forward_only=True)
    for stage in model:
        stage.train()
    return totals[0], totals[1]


def _forward_backward(
    model: list[DistributedDataParallel],
    batches: Sequence[Batch],
    groups: Groups,
    device: Device,
    *,
    forward_only: bool,
) -> list[float]:
    """[loss sum, learnt tokens, tokens] over the global batch, gradients left in the model."""
    length = batches[0].tokens.shape[1]  # of whole rows, as Megatron wants it
    batches = [_local_part(batch, groups) for batch in batches]
    sums = get_forward_backward_func()(
        forward_step_func=_forward_step,
        data_iterator=[_on_device(batches, device) for _ in model] if len(model) > 1 else _on_device(batches, device),
        model=model,
        num_microbatches=len(batches),
        seq_length=length,
        micro_batch_size=batches[0].tokens.shape[0],
        forward_only=forward_only,
    )
    loss = sum((part["loss"] for part in sums), torch.zeros((), device=device.torch_device))
    learnt = sum(batch.learnt_tokens for batch in batches)
    tokens = sum(batch.tokens.numel() for batch in batches)
    totals = torch.tensor([0.0, learnt, tokens], dtype=torch.float64, device=device.torch_device)
    totals[0] = loss
    groups.from_last_stage(totals)
    return groups.sum_over_data(totals).tolist()


def _local_part(batch: Batch, groups: Groups) -> Batch:
    """The positions that this context parallel rank holds, on the host still; labels were shifted long before."""
    if groups.layout.context == 1:
        return batch
    return batch.at(local_positions(batch.tokens.shape[1], groups.layout, groups.context_rank))


def _on_device(batches: Sequence[Batch], device: Device) -> Iterator[tuple[Tensor | None, ...]]:
    target = device.torch_device
    for batch in batches:
        tensors = (batch.tokens, batch.position_ids, batch.labels, batch.loss_mask)
        yield (*(tensor.to(target, non_blocking=True) for tensor in tensors), batch.boundaries)


def _forward_step(batches: Iterator[tuple[Tensor, ...]], model: torch.nn.Module) -> tuple[Tensor, Any]:
    tokens, position_ids, labels, loss_mask, boundaries = next(batches)
    output = model(tokens, position_ids, boundaries, labels=labels, loss_mask=loss_mask)

    def reduce(loss: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        # Megatron divides the gradients by the sum of these counts over micro-batches and replicas.
        return loss, loss_mask.count_nonzero().to(torch.int), {"loss": loss.detach()}

    return output, reduce
