"""The loss scale of fp16: read from Megatron's optimizer, saved, and restored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mindspeed_ift.mcore import DynamicGradScaler
from mindspeed_ift.training.optimizer import chained


@dataclass(frozen=True)
class LossScale:
    """What the loss is multiplied by before the backward pass, and gradients are divided by after it, in fp16.

    Attributes:
        value: of the next step.
        can_fall: a gradient that is not finite is a matter of the scale as long as this can fall.
    """

    value: float
    can_fall: bool


def loss_scale_of(optimizer: Any) -> LossScale | None:
    """None: the loss is not scaled."""
    scaler = _scaler(optimizer)
    if scaler is None:
        return None
    value = float(scaler.scale)
    return LossScale(value, isinstance(scaler, DynamicGradScaler) and value > float(scaler.min_scale))


def state_of(optimizer: Any) -> dict[str, float] | None:
    """What a resume needs of a scale that follows the gradients, as JSON; None: there is none."""
    scaler = _scaler(optimizer)
    if not isinstance(scaler, DynamicGradScaler):
        return None
    return {name: float(value) for name, value in scaler.state_dict().items()}


def restore(optimizer: Any, state: dict[str, float] | None) -> None:
    """Go on with what `state_of` gave; begin anew where one of both runs had no such scale."""
    scaler = _scaler(optimizer)
    if state is None or not isinstance(scaler, DynamicGradScaler):
        return
    scale = torch.full_like(scaler.scale, state["scale"])
    trackers = {name: int(value) for name, value in state.items() if name != "scale"}
    scaler.load_state_dict({"scale": scale, **trackers})


def _scaler(optimizer: Any) -> Any:
    """Of a chain the first part's: experts, whose part would have one of its own, are not trained in fp16."""
    return getattr(chained(optimizer)[0], "grad_scaler", None)  # the optimizer of a run in fp32 knows none
