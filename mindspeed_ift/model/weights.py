"""Weights into a model, every one of them, in its shape."""

from __future__ import annotations

import torch
from torch import nn

from mindspeed_ift.config.errors import UserError


def fill(model: nn.Module, weights: dict[str, torch.Tensor], origin: str) -> None:
    """Copy ``weights`` into the model; every parameter must be there in its shape.

    Raises:
        UserError: naming the first tensor that is missing, unexpected or of another shape.
    """
    parameters = dict(model.named_parameters())
    for name in sorted(parameters.keys() | weights.keys()):
        if name not in weights:
            raise UserError(f"{origin}: the tensor {name} is missing; is it a checkpoint of this architecture?")
        if name not in parameters:
            raise UserError(f"{origin}: the tensor {name} is unexpected; is it a checkpoint of this architecture?")
        if parameters[name].shape != weights[name].shape:
            raise UserError(
                f"{origin}: {name} has shape {tuple(weights[name].shape)}, the model {tuple(parameters[name].shape)}"
            )
        with torch.no_grad():
            parameters[name].copy_(weights[name])
