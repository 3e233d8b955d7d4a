"""What a tiny model really takes in memory, counted by storages, to hold plans to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.live_tensors import LiveTensors
from mindspeed_ift.config.lora import LoraFlags
from mindspeed_ift.config.tuning import OptimizerFlags, TrainingDataFlags, TuneConfig
from mindspeed_ift.data.batch import Batch
from mindspeed_ift.devices.device import current
from mindspeed_ift.model.build import ModelOptions, build_stages
from mindspeed_ift.model.lora import start_adapters
from mindspeed_ift.parallel.context.split import local_positions
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.planning.memory import Case
from mindspeed_ift.training.optimizer import build_optimizer, chained, wrap
from mindspeed_ift.training.step import forward_backward

SEGMENT = 64


@dataclass(frozen=True)
class Measured:
    """Bytes of a rank.

    Attributes:
        weights: storages of all parameters.
        gradients: Megatron's buffers.
        optimizer: what it holds after a step, views of weights apart.
        saved: what autograd keeps of one micro-batch.
        peak: the most that lives besides all these in a step's forward and backward passes.
    """

    weights: int
    gradients: int
    optimizer: int
    saved: int
    peak: int


def config_of(
    lora: LoraFlags | None = None, *, packed: bool = False, layout: Any = None, **optimizer: Any
) -> TuneConfig:
    """Flags of a run; small pieces of the loss, so that they do not outweigh a tiny model."""
    options = {"loss_compute_mode": "chunk", "loss_chunk_size": 16, "train_iters": 1} | optimizer
    config = TuneConfig(
        data=TrainingDataFlags(data_path=("none",), reset_attention_mask=packed),
        optimizer=OptimizerFlags(**options),
        lora=lora or LoraFlags(),
    )
    return config if layout is None else TuneConfig(**{**vars(config), "layout": layout})


def measure(case: Case, groups: Groups) -> Measured:
    """Build the case's model on this rank and run a step of it."""
    config = case.config
    stages = _build(case, groups)
    model = wrap(stages, config.layout)
    optimizer = build_optimizer(model, config.optimizer, config.layout)
    parameters = [one for stage in stages for one in stage.parameters()]
    batch = _batch(case)
    saved = _saved(model, batch, groups, parameters)
    for stage in model:
        stage.zero_grad_buffer()
    with LiveTensors() as live:
        forward_backward(model, [batch] * case.micro_batches, groups, current(), lambda: False, forward_only=False)
    gradients = _bytes(one.main_grad for one in parameters if one.requires_grad)
    with torch.no_grad():
        optimizer.prepare_grads()
        optimizer.step_with_ready_grads()
    held = _bytes(_states(optimizer), without=[one.data for one in parameters])
    return Measured(_bytes(parameters), gradients, held, saved, live.peak)


def _build(case: Case, groups: Groups) -> list[Any]:
    flags, lora = case.config.optimizer, case.config.lora
    options = ModelOptions(
        padded_vocab=case.padded_vocab,
        dtype=torch.bfloat16 if flags.bf16 else torch.float32,
        recompute=(flags.recompute_granularity, flags.recompute_method, flags.recompute_num_layers),
        loss_chunk_size=flags.loss_chunk_size,
        lora=lora if lora.active else None,
    )
    stages = build_stages(case.architecture, options, groups)
    for stage in stages if lora.active else ():
        start_adapters(stage, stage.layer_numbers, 1)
    return stages


def _batch(case: Case) -> Batch:
    rows, length = case.config.optimizer.micro_batch_size, case.row
    tokens = torch.randint(0, case.architecture.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))
    ends = torch.arange(0, rows * length + 1, SEGMENT, dtype=torch.int32) if case.tokens.packed else None
    positions = torch.arange(length).expand(rows, length).contiguous()
    return Batch(tokens, tokens, torch.ones(rows, length), positions, ends)


def _saved(model: list[Any], batch: Batch, groups: Groups, parameters: list[Tensor]) -> int:
    """Only where there is one stage: others get theirs from peers."""
    if groups.layout.pipeline > 1:
        return 0
    batch = batch.at(local_positions(batch.tokens.shape[1], groups.layout, groups.context_rank))
    known = {one.untyped_storage().data_ptr() for one in parameters}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept.setdefault(storage.data_ptr(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model[0](batch.tokens, batch.position_ids, batch.boundaries, labels=batch.labels, loss_mask=batch.loss_mask)
    return sum(storage.nbytes() for storage in kept.values())


def _bytes(tensors: Iterable[Tensor], without: Iterable[Tensor] = ()) -> int:
    """Of the parts of storages that tensors cover, each counted once."""
    covered = {(one.data_ptr(), one.nbytes) for one in tensors}
    return sum(size for _, size in covered - {(one.data_ptr(), one.nbytes) for one in without})


def _states(optimizer: Any) -> Iterable[Tensor]:
    """Main weights and moments."""
    for part in chained(optimizer):
        for group in part.optimizer.param_groups:
            yield from group["params"]
        for state in part.optimizer.state.values():
            yield from (one for one in state.values() if isinstance(one, Tensor) and one.dim())
