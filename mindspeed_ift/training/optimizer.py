"""Megatron-core's optimizer and schedule from the flags."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import LayoutFlags
from mindspeed_ift.config.tuning import OptimizerFlags
from mindspeed_ift.devices.device import current
from mindspeed_ift.mcore import (
    ColumnParallelLinear,
    DistributedDataParallel,
    DistributedDataParallelConfig,
    HybridDeviceOptimizer,
    OptimizerConfig,
    OptimizerParamScheduler,
    RowParallelLinear,
    add_weight_gradients_by,
    finalize_model_grads,
    get_megatron_optimizer,
    parallel_state,
    unable,
)
from mindspeed_ift.model.build import Qwen3Model


def wrap(stages: list[Qwen3Model], layout: LayoutFlags) -> list[DistributedDataParallel]:
    """Give the stages of this rank gradient buffers in fp32 and the reduction over replicas.

    Raises:
        UserError: the installed Megatron-core cannot do this.
    """
    several = stages[0].config.pipeline_model_parallel_size > 1
    shared = several and stages[0].architecture.tied
    refusal = unable(tied_and_sharded=shared and layout.use_distributed_optimizer)
    if refusal is not None:
        raise UserError(refusal)
    options = DistributedDataParallelConfig(
        use_distributed_optimizer=layout.use_distributed_optimizer,
        overlap_grad_reduce=layout.overlap_grad_reduce,
        overlap_param_gather=layout.overlap_param_gather,
        grad_reduce_in_fp32=True,
    )
    # One bucket for later stages: with several, the schedule starts the reduction of a whole one.
    wrapped = [
        DistributedDataParallel(stage.config, options, stage, disable_bucketing=number > 0)
        for number, stage in enumerate(stages)
    ]
    _add_gradients_in_place(stages)
    return wrapped


def _add_gradients_in_place(stages: list[Qwen3Model]) -> None:
    """Linear layers add their weights' gradients to the buffers themselves, which are there from now on."""
    add_weight_gradients_by(current().kernels.add_product)
    for stage in stages:
        for module in stage.modules():
            if isinstance(module, (ColumnParallelLinear, RowParallelLinear)):
                module.gradient_accumulation_fusion = True


def weights_dtype(flags: OptimizerFlags) -> torch.dtype:
    """Of weights and activations."""
    return torch.bfloat16 if flags.bf16 else torch.float16 if flags.fp16 else torch.float32


def build_optimizer(model: list[DistributedDataParallel], flags: OptimizerFlags, layout: LayoutFlags) -> Any:
    """Megatron's AdamW over the stages of a rank, and the hooks its schedule needs in their config.

    Weight decay spares biases and norms (Megatron's rule: one-dimensional parameters).
    """
    config = OptimizerConfig(
        optimizer="adam",
        lr=flags.lr,
        min_lr=flags.min_lr,
        weight_decay=flags.weight_decay,
        adam_beta1=flags.adam_beta1,
        adam_beta2=flags.adam_beta2,
        adam_eps=flags.adam_eps,
        clip_grad=flags.clip_grad,
        bf16=flags.bf16,
        fp16=flags.fp16,
        loss_scale=flags.loss_scale if flags.fp16 else None,
        initial_loss_scale=flags.initial_loss_scale,
        min_loss_scale=flags.min_loss_scale,
        loss_scale_window=flags.loss_scale_window,
        hysteresis=flags.hysteresis,
        params_dtype=weights_dtype(flags),
        use_distributed_optimizer=layout.use_distributed_optimizer,
        overlap_param_gather=layout.overlap_param_gather,
        # On the CPU there is nowhere to go.
        optimizer_cpu_offload=flags.optimizer_cpu_offload and current().asynchronous,
        optimizer_offload_fraction=flags.optimizer_offload_fraction,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = get_megatron_optimizer(config, model)
    _fuse(optimizer)
    core = model[0].config
    core.finalize_model_grads_func = _finalize
    core.grad_scale_func = optimizer.scale_loss
    if layout.overlap_grad_reduce:
        core.no_sync_func = _one_or_all([stage.no_sync for stage in model])
    if layout.overlap_param_gather:
        core.param_sync_func = _one_or_all([stage.start_param_sync for stage in model])
    return optimizer


def chained(optimizer: Any) -> list[Any]:
    """The optimizers of Megatron's chain, in which experts have one of their own; of a single one itself."""
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _finalize(model: list[DistributedDataParallel], units: Tensor, **options: Any) -> None:
    """Gradients over all ranks, divided by the units of the loss; where there is none they stay zero.

    Source: Megatron's ``finalize_model_grads``, which asks the device whether there is any.
    """
    finalize_model_grads(model, None, **options)
    pipeline = parallel_state.get_pipeline_model_parallel_group()
    dist.broadcast(units, dist.get_process_group_ranks(pipeline)[-1], group=pipeline)  # the last stage knows them
    dist.all_reduce(units, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    for stage in model:
        stage.scale_gradients(1.0 / units.clamp_min(1))


def _fuse(optimizer: Any) -> None:
    """Let AdamW update a group's weights in one kernel where the device has it; offloaded moments update as they did."""
    for part in chained(optimizer):
        if current().kernels.fused_adamw and not isinstance(part.optimizer, HybridDeviceOptimizer):
            for group in part.param_groups:
                group["fused"] = True


def restored(optimizer: Any) -> None:
    """State and main weights were replaced, as a resume does: what --optimizer-cpu-offload keeps on the host follows.

    A fused update has its count of steps on the device.

    Source: Megatron's ``HybridDeviceOptimizer._sync_hdo_state_to_sub_optimizers``, which fails on main weights in fp32.
    """
    for part in chained(optimizer):
        outer = part.optimizer
        for group in outer.param_groups:
            for parameter in group["params"] if group.get("fused") else ():
                state = outer.state[parameter]
                if "step" in state:
                    state["step"] = state["step"].to(parameter.device)
        for inner in outer.sub_optimizers if isinstance(outer, HybridDeviceOptimizer) else ():
            for group in inner.param_groups:
                for copy in group["params"]:
                    parameter = outer.inner_param_to_orig_param[copy]
                    copy.data.copy_(parameter.data)
                    state = {name: value.to(copy.device) for name, value in outer.state[parameter].items()}
                    inner.state[copy] = state | {"master_param": copy}


def _one_or_all(functions: list[Callable[..., Any]]) -> Any:
    """As Megatron's schedules want them: a function for one stage, a list for several."""
    return functions[0] if len(functions) == 1 else functions


@torch.no_grad()
def update(optimizer: Any) -> float:
    """Clip the gradients and move the weights; where the gradient norm is not finite, leave weights and state as they are.

    Returns:
        The gradient norm before clipping, on every rank the same.

    Source: Megatron's ``ChainedOptimizer.step``, which moves the weights whatever the norm.
    """
    if optimizer.prepare_grads():  # which has changed the loss scale
        return math.inf
    norm = _gradient_norm(optimizer)
    if not math.isfinite(norm):
        return norm
    for part in chained(optimizer):
        share = part.config.clip_grad / (norm + 1e-6)
        grads = [parameter.grad for parameter in part.get_parameters() if parameter.grad is not None]
        if grads and 0 < share < 1:
            torch._foreach_mul_(grads, share)
    optimizer.step_with_ready_grads()
    return norm


def _gradient_norm(optimizer: Any) -> float:
    """Over all ranks, each gradient once; the device is asked once.

    Source: Megatron's ``get_grad_norm_fp32``, which without apex and TransformerEngine asks the device once a gradient.
    """
    parts = chained(optimizer)
    of_groups = [(part.get_grad_stats_parallel_group(), part.get_main_grads_for_grad_norm()) for part in parts]
    if len(parts) > 1 and optimizer.grads_states_parallel_group_is_shared():
        of_groups = [(of_groups[0][0], [grad for _, grads in of_groups for grad in grads])]
    squares = [_sum_of_squares(grads, group) for group, grads in of_groups]
    return math.sqrt(float(sum(squares)))


def _sum_of_squares(grads: list[Tensor], group: dist.ProcessGroup | None) -> Tensor:
    norms = torch._foreach_norm(grads) if grads else [torch.zeros((), device=current().torch_device)]
    square = torch.linalg.vector_norm(torch.stack(norms)).square()
    dist.all_reduce(square, group=group)
    return square


def build_schedule(optimizer: Any, flags: OptimizerFlags) -> OptimizerParamScheduler:
    """Warm-up, then constant, linear or cosine decay, counted in steps; the first step of a warm-up has its start."""
    assert flags.train_iters is not None
    decay = flags.lr_decay_iters or flags.train_iters
    warmup = flags.lr_warmup_iters
    if flags.lr_warmup_fraction is not None:
        warmup = int(flags.lr_warmup_fraction * decay)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=flags.lr_warmup_init,
        max_lr=flags.lr,
        min_lr=flags.min_lr,
        lr_warmup_steps=warmup,
        lr_decay_steps=decay,
        lr_decay_style=flags.lr_decay_style,
        start_wd=flags.weight_decay,
        end_wd=flags.weight_decay,
        wd_incr_steps=decay,
        wd_incr_style="constant",
    )
