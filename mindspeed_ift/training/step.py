"""One optimizer step: micro-batches, forward, weighted loss, backward, update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function as named

from mindspeed_ift.data.batch import Batch
from mindspeed_ift.devices.device import Device
from mindspeed_ift.devices.transfer import upload
from mindspeed_ift.mcore import DistributedDataParallel, OptimizerParamScheduler, get_forward_backward_func
from mindspeed_ift.model import head
from mindspeed_ift.model.experts import balance_scale_of_step, routers
from mindspeed_ift.parallel.context.split import local_positions
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.parallel.pipeline import communication
from mindspeed_ift.training.loss_scale import loss_scale_of
from mindspeed_ift.training.optimizer import update


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        loss: mean over the units of the global batch (learnt tokens, unless --loss-reduction says otherwise), each token
            times its weight if it has one.
        gradient_norm: before clipping.
        learning_rate: of this step.
        learnt_tokens: tokens with a label, over all replicas.
        tokens: tokens with pads, over all replicas.
        real_tokens: without pads.
        squared_lengths: sum over all samples of the squared length; see `Batch`.
        load_balancing_loss: of experts, mean over layers and micro-batches, without coefficient: 1 where all are equally
            busy. None: it is not asked for.
        refusal: why the weights were not moved (the loss or the gradient norm is not finite), or None.
        loss_scale: in fp16, what the loss was multiplied by before the backward pass.
        overflow: the gradients did not fit into fp16 at this scale, so that the weights were not moved. The scale follows:
            no refusal.
        stop: some rank was asked to stop.
    """

    loss: float
    gradient_norm: float
    learning_rate: float
    learnt_tokens: int
    tokens: int
    real_tokens: int = 0
    squared_lengths: int = 0
    load_balancing_loss: float | None = None
    refusal: str | None = None
    stop: bool = False
    loss_scale: float | None = None
    overflow: bool = False


class Totals(NamedTuple):
    """Sums over all ranks: of the loss, the units it is the mean of, tokens of four kinds (see `StepReport`), ranks that were
    asked to stop, and of the losses for unequal load, as many as there are layers with experts and micro-batches.
    """

    loss: float
    units: float
    learnt: float
    tokens: float
    real: float
    squared_lengths: float
    asked_to_stop: float
    balance: float


def train_step(
    model: list[DistributedDataParallel],
    optimizer: Any,
    schedule: OptimizerParamScheduler,
    batches: Sequence[Batch],
    groups: Groups,
    device: Device,
    stop_requested: Callable[[], bool] = lambda: False,
) -> StepReport:
    """Forward, backward and update over the micro-batches of this replica.

    The gradient is that of the loss sum divided by the units (learnt tokens, as a rule) of the *global* batch, so that
    packing, accumulation and replicas change nothing. A global batch without a learnt token moves no weight. Nor does one
    whose loss or gradient norm is not finite: weights, optimizer and schedule stay as they are, on every rank, and the
    report says why. In fp16 a gradient may overflow as long as the loss scale can fall; that is part of finding the scale.

    Args:
        model: this rank's stages.
        optimizer: Megatron's.
        schedule: of the learning rate; a refused step does not advance it (Megatron's rule).
        batches: this replica's micro-batches.
        groups: whom this rank talks to.
        device: where tensors go.
        stop_requested: whether this rank was asked to stop; all ranks learn of it with the loss.
    """
    for stage in model:
        stage.zero_grad_buffer()
    optimizer.zero_grad()
    balanced = _prepare_balance(model, batches, groups, device)
    with named("forward_backward"):  # as a trace shows it
        totals = forward_backward(model, batches, groups, device, stop_requested, forward_only=False)
    learning_rate = optimizer.param_groups[0]["lr"]
    gradient_norm, refusal, overflow, scale = 0.0, None, False, loss_scale_of(optimizer)
    if not math.isfinite(totals.loss):
        refusal = f"the loss is {totals.loss}"
    elif totals.units > 0:
        with named("optimizer_step"):
            gradient_norm = update(optimizer)
        overflow = not math.isfinite(gradient_norm) and scale is not None and scale.can_fall
        if not math.isfinite(gradient_norm) and not overflow:
            refusal = f"the gradient norm is {gradient_norm}"
    if refusal is None and not overflow:
        schedule.step(increment=1)
    return StepReport(
        loss=totals.loss / max(totals.units, 1.0),
        gradient_norm=gradient_norm,
        learning_rate=learning_rate,
        learnt_tokens=int(totals.learnt),
        tokens=int(totals.tokens),
        real_tokens=int(totals.real),
        squared_lengths=int(totals.squared_lengths),
        load_balancing_loss=totals.balance / balanced if balanced else None,
        refusal=refusal,
        stop=totals.asked_to_stop > 0,
        loss_scale=scale.value if scale is not None else None,
        overflow=overflow,
    )


def _prepare_balance(
    model: list[DistributedDataParallel], batches: Sequence[Batch], groups: Groups, device: Device
) -> int:
    """Tell the routers what their losses for unequal load weigh in this step; how many such losses it will have, if any.

    The weight follows from the units of the global batch, which Megatron knows after the backward pass only.
    """
    if not model[0].config.num_moe_experts or not model[0].config.moe_aux_loss_coeff:
        return 0
    counts = (sum(batch.units for batch in batches), len(batches))
    if not groups.totals_writer or groups.context_rank > 0:  # these are of whole rows
        counts = (0, 0)
    totals = upload(torch.tensor(counts, dtype=torch.float64), device.torch_device)
    units, micro_batches = groups.sum_over_world(totals).tolist()
    for router in routers(model):
        router.balance_scale, router.balance_sum = balance_scale_of_step(units, micro_batches), None
    return int(micro_batches) * sum(model[0].config.moe_layer_freq)


def evaluate_step(
    model: list[DistributedDataParallel], batches: Sequence[Batch], groups: Groups, device: Device
) -> tuple[float, float]:
    """(loss sum, units it is the mean of) over all replicas, without gradients."""
    for stage in model:
        stage.eval()
    with torch.no_grad():
        totals = forward_backward(model, batches, groups, device, lambda: False, forward_only=True)
    for stage in model:
        stage.train()
    return totals.loss, totals.units


def forward_backward(
    model: list[DistributedDataParallel],
    batches: Sequence[Batch],
    groups: Groups,
    device: Device,
    stop_requested: Callable[[], bool],
    *,
    forward_only: bool,
) -> Totals:
    """Run the micro-batches of this replica through Megatron's schedule.

    Args:
        model: this rank's stages.
        batches: this replica's micro-batches.
        groups: whom this rank talks to.
        device: where tensors go.
        stop_requested: whether this rank was asked to stop.
        forward_only: leave no gradients.

    Returns:
        Totals over the global batch. The gradients left in the model are those of the loss sum divided by the units.
    """
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
        **communication(model[0].config, groups, [tuple(batch.tokens.shape) for batch in batches]),
    )
    # Of every rank: a signal may reach but one of them.
    known = _known_totals(batches, groups, stop_requested())
    totals = upload(torch.tensor(known, dtype=torch.float64), device.torch_device)
    of_device = Totals(*totals.unbind())
    if groups.totals_writer:
        of_device.loss.copy_(sum(part["loss"] for part in sums))
    balance = [router.balance_sum for router in routers(model) if router.balance_sum is not None]
    if balance:
        of_device.balance.copy_(sum(balance))
    return Totals(*groups.sum_over_world(totals).tolist())


def _known_totals(batches: Sequence[Batch], groups: Groups, asked_to_stop: bool) -> Totals:
    """What this rank adds to the totals, as far as the host knows it."""
    known = Totals(*[0.0] * len(Totals._fields))._replace(asked_to_stop=asked_to_stop)
    if not groups.totals_writer:
        return known
    known = known._replace(
        units=sum(batch.units for batch in batches),
        learnt=sum(batch.learnt_tokens for batch in batches),
        tokens=sum(batch.tokens.numel() for batch in batches),
    )
    if groups.context_rank > 0:  # what follows is of whole rows
        return known
    return known._replace(
        real=sum(batch.real_tokens for batch in batches),
        squared_lengths=sum(batch.squared_lengths for batch in batches),
    )


def _local_part(batch: Batch, groups: Groups) -> Batch:
    """The positions that this context parallel rank holds, on the host still; labels were shifted long before."""
    if groups.layout.context == 1:
        return batch
    return batch.at(local_positions(batch.tokens.shape[1], groups.layout, groups.context_rank))


def _on_device(batches: Sequence[Batch], device: Device) -> Iterator[tuple[Tensor | None, ...]]:
    target = device.torch_device
    for batch in batches:
        learnt = head.learnt_positions(batch.loss_mask)  # here, where nothing waits for the device
        tensors = (batch.tokens, batch.position_ids, batch.labels, batch.loss_mask, batch.counted, learnt)
        pads = None if batch.pads is None else upload(batch.pads, target)
        yield (*(upload(tensor, target) for tensor in tensors), batch.boundaries, pads)


def _forward_step(batches: Iterator[tuple[Tensor, ...]], model: torch.nn.Module) -> tuple[Tensor, Any]:
    tokens, position_ids, labels, loss_mask, counted, learnt, boundaries, pads = next(batches)
    output = model(tokens, position_ids, boundaries, labels=labels, loss_mask=loss_mask, pads=pads, learnt=learnt)

    def reduce(loss: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        # Megatron divides the gradients by the sum of these counts over micro-batches and replicas.
        return loss, counted.count_nonzero().to(torch.int), {"loss": loss.detach()}

    return output, reduce
