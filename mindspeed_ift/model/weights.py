"""Weights into a model, every one of them, in its shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from mindspeed_ift.config.errors import UserError


def without_adapters(name: str) -> bool:
    """Whether a parameter is one that the model has without LoRA, by its name."""
    return not name.rpartition(".")[2].startswith("lora_")


def fill(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    origin: str,
    wanted: Callable[[str], bool] = lambda name: True,
) -> None:
    """Copy ``weights`` into the model; every wanted parameter must be there in its shape, others are left as they are.

    Args:
        model: to fill.
        weights: name -> tensor.
        origin: of the weights, for messages.
        wanted: whether a name is.

    Raises:
        UserError: naming the first tensor that is missing, unexpected or of another shape.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if wanted(name)}
    given = {name for name in weights if wanted(name)}
    for name in sorted(parameters.keys() | given):
        if name not in given:
            raise UserError(f"{origin}: the tensor {name} is missing; is it a checkpoint of this architecture?")
        if name not in parameters:
            raise UserError(f"{origin}: the tensor {name} is unexpected; is it a checkpoint of this architecture?")
        weight = weights[name]  # read only now, where they lie in files
        if parameters[name].shape != weight.shape:
            raise UserError(
                f"{origin}: {name} has shape {tuple(weight.shape)}, the model {tuple(parameters[name].shape)};"
                " is it a checkpoint of this architecture?"
            )
        with torch.no_grad():
            parameters[name].copy_(weight)
