"""Each stage of a pipeline on one process, fed by hand: does what it needs of a packed row arrive in it?"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.layout import Layout
from mindspeed_ift.data.batch import Batch
from mindspeed_ift.devices.device import Device
from mindspeed_ift.model.build import ModelOptions, Qwen3Model, transformer_config
from mindspeed_ift.model.lora import freeze
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.verify.packed_trial import Part, Trial


def build_pipeline(
    architecture: Architecture,
    options: ModelOptions,
    groups: Groups,
    stages: int,
    device: Device,
) -> list[Qwen3Model]:
    """All stages, each as its own process would build it.

    Args:
        architecture: of the whole model, with as many layers as divide over the stages.
        options: of the model.
        groups: of a world of one.
        stages: how many.
        device: where they lie.
    """
    config = transformer_config(architecture, options, groups)
    built = []
    for stage in range(stages):
        place = replace(groups, layout=Layout(pipeline=stages), pipeline_rank=stage)
        model = Qwen3Model(config, architecture, options, place, chunk=0)
        if options.lora is not None:
            freeze(model, options.lora, architecture.tied)
        built.append(model.to(device=device.torch_device, dtype=options.dtype))
    return built


def worst_of_stages(stages: list[Qwen3Model], trial: Trial, device: Device) -> list[tuple[float, str]]:
    """For each stage the largest difference between packed and alone, as a share of the largest value, and where it is.

    Compared are what the stage hands on and the gradient that it hands back, at the positions of each sample.
    """
    outputs, gradients = _run(stages, trial.batch, device)
    worst: list[tuple[float, str]] = [(0.0, "")] * len(stages)
    for part in trial.parts:
        alone_outputs, alone_gradients = _run(stages, trial.alone(part), device)
        for number in range(len(stages)):
            for kind, packed, alone in (
                ("hidden states", outputs[number], alone_outputs[number]),
                ("gradient of the input", gradients[number], alone_gradients[number]),
            ):
                if packed is None or alone is None or packed.dim() == 0:
                    continue
                found = _difference(packed, alone, part)
                if not found <= worst[number][0]:
                    worst[number] = (found, f"{kind}, {part.name}")
    return worst


def _difference(packed_SBH: Tensor, alone_SBH: Tensor, part: Part) -> float:
    here = packed_SBH[part.start : part.stop, part.row].float()
    there = alone_SBH[: part.stop - part.start, 0].float()
    return float((here - there).abs().max() / there.abs().max().clamp(min=torch.finfo(torch.float32).tiny))


def _run(stages: list[Qwen3Model], batch: Batch, device: Device) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """What each stage hands on (the last one its loss), and the gradient that each but the first hands back."""
    target = device.torch_device
    tokens, positions, labels, mask = (
        one.to(target) for one in (batch.tokens, batch.position_ids, batch.labels, batch.loss_mask)
    )
    inputs: list[Tensor | None] = [None]
    outputs: list[Tensor] = []
    for stage in stages:
        if inputs[-1] is not None:
            stage.set_input_tensor(inputs[-1])
        outputs.append(stage(tokens, positions, batch.boundaries, labels=labels, loss_mask=mask))
        inputs.append(outputs[-1].detach().requires_grad_())
    gradient = None
    for output, given in zip(reversed(outputs), reversed(inputs[:-1])):
        torch.autograd.backward(output, gradient)
        gradient = None if given is None else given.grad
    handed_back = [None if given is None else given.grad for given in inputs[:-1]]
    return [output.detach() for output in outputs], handed_back
