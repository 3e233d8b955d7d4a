"""A tiny model through the step of training: loss, every gradient, and what reaches the embedded tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mindspeed_ift.config.lora import LoraFlags
from mindspeed_ift.config.tuning import TuneConfig
from mindspeed_ift.data.batch import Batch
from mindspeed_ift.devices.device import current
from mindspeed_ift.model.build import Qwen3Model
from mindspeed_ift.model.lora import start_adapters
from mindspeed_ift.parallel.context.split import local_positions
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.training.optimizer import build_optimizer, wrap
from mindspeed_ift.training.step import evaluate_step, forward_backward
from mindspeed_ift.verify.packed_trial import Part, positions_of


@dataclass(frozen=True)
class Result:
    """What a micro-batch came to.

    Attributes:
        loss: summed over the learnt tokens.
        gradients: of this sum, by name with the number of the stage.
        embedded: gradient of the embedded tokens that this rank holds, ``[S, B, H]``; None on other stages.
    """

    loss: float
    gradients: dict[str, Tensor]
    embedded: Tensor | None


class TrialModel:
    """This rank's stages, ready to compute.

    Args:
        stages: with their weights.
        config: of the run; how replicas share gradients is none of what is checked.
        groups: whom this rank talks to.
    """

    def __init__(self, stages: list[Qwen3Model], config: TuneConfig, groups: Groups) -> None:
        layout = replace(
            config.layout, use_distributed_optimizer=False, overlap_grad_reduce=False, overlap_param_gather=False
        )
        self.groups, self.device = groups, current()
        self._model = wrap(stages, layout)
        # It gives the schedule its hooks, and is not asked for more.
        build_optimizer(self._model, replace(config.optimizer, optimizer_cpu_offload=False, fp16=False), layout)
        # The interleaved schedule takes micro-batches by the pipeline's size, replicas their own: all get the same.
        self._copies = groups.layout.pipeline if groups.chunks > 1 else 1
        self._trained = {
            f"{name.removeprefix('decoder.')} of stage {groups.stage(chunk) + 1}": parameter
            for chunk, stage in enumerate(stages)
            for name, parameter in stage.named_parameters()
            if parameter.requires_grad
        }
        self._embedded: list[Tensor] = []
        for stage in stages:
            if stage.pre_process:
                stage.embedding.register_forward_hook(self._keep)

    def _keep(self, _module: torch.nn.Module, _inputs: tuple, output: Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
            self._embedded.append(output)

    def parameters(self) -> int:
        """Trained parameters of this rank, as tensors."""
        return len(self._trained)

    def run(self, batch: Batch) -> Result:
        """Forward and backward pass of one micro-batch."""
        self._embedded.clear()
        for stage in self._model:
            stage.zero_grad_buffer()
        batches = [batch] * self._copies
        totals = forward_backward(self._model, batches, self.groups, self.device, lambda: False, forward_only=False)
        times = self._copies * self.groups.layout.data
        # What the step leaves is divided by the units of the loss.
        gradients = {name: one.main_grad * (totals.units / times) for name, one in self._trained.items()}
        embedded = self._embedded[0].grad if self._embedded else None
        return Result(totals.loss / times, gradients, embedded)

    def loss(self, batch: Batch) -> float:
        """Loss sum of one micro-batch, without gradients."""
        loss, _ = evaluate_step(self._model, [batch] * self._copies, self.groups, self.device)
        return loss / self._copies / self.groups.layout.data

    def reach(self, result: Result, batch: Batch, part: Part) -> float:
        """Largest gradient of a token outside ``part``, over all ranks, where only ``part`` was learnt."""
        largest = 0.0
        if result.embedded is not None:
            layout = self.groups.layout
            outside = ~positions_of([part], batch.tokens.shape)
            held = local_positions(outside.shape[1], layout, self.groups.context_rank)
            if layout.sequence_parallel:
                held = held.chunk(layout.tensor)[self.groups.tensor_rank]
            apart = result.embedded[outside[:, held].t().to(result.embedded.device)]
            largest = float(apart.abs().max()) if apart.numel() else 0.0
        return max(self.groups.gather(largest))

    def worst(self, found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
        """Of all parameters of all ranks the largest difference, as a share of the parameter's largest, and its name.

        What is less than a millionth of the largest of all is rounding.
        """
        floor = 1e-6 * max(float(gradient.abs().max()) for gradient in expected.values())
        shares = [
            (float((found[name] - one).abs().max()) / max(float(one.abs().max()), floor, 1e-30), name)
            for name, one in expected.items()
        ]
        worst = max(shares, key=_nan_first)
        return max(self.groups.gather(worst), key=_nan_first)


def prepare(stage: Qwen3Model, lora: LoraFlags, seed: int) -> None:
    """Give adapters weights that change something, or half of them would have no gradient."""
    if not lora.active:
        return
    start_adapters(stage, stage.layer_numbers, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in stage.named_parameters():
        if name.rpartition(".")[2].startswith("lora_B"):
            drawn = torch.randn(parameter.shape, generator=generator) * 0.1
            with torch.no_grad():
                parameter.copy_(drawn)


def _nan_first(found: tuple[float, str]) -> float:
    return float("inf") if found[0] != found[0] else found[0]
