"""A forward pass through all stages of a model, each on a rank of its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mindspeed_ift.devices.device import current
from mindspeed_ift.model.build import Qwen3Model
from mindspeed_ift.parallel.groups import Groups


def receive(model: Qwen3Model, groups: Groups, rows: int, length: int) -> Tensor:
    """Hidden states ``[length, rows, H]`` from the stage before this rank's."""
    size, dtype = model.config.hidden_size, model.options.dtype
    hidden = torch.empty(length, rows, size, dtype=dtype, device=current().torch_device)
    dist.recv(hidden, groups.rank - groups.stage_distance)
    return hidden


def hand_on(hidden: Tensor, groups: Groups) -> None:
    """Hidden states to the stage after this rank's."""
    dist.send(hidden.contiguous(), groups.rank + groups.stage_distance)


def run_stages(
    model: Qwen3Model, groups: Groups, tokens: Tensor, positions: Tensor, boundaries: Tensor | None, **asked: Any
) -> Tensor | None:
    """Take hidden states from the stage before this rank's, run its own, hand them on.

    Args:
        model: this rank's stage, in evaluation mode.
        groups: its peers.
        tokens: int64 ``[B, S]``.
        positions: int64 ``[B, S]``.
        boundaries: as for the model.
        asked: what the last stage shall compute, as for the model.

    Returns:
        That, on the ranks of the last stage; None on the others.
    """
    if not model.pre_process:
        model.set_input_tensor(receive(model, groups, *tokens.shape))
    out = model(tokens, positions, boundaries, **asked)
    if model.post_process:
        return out
    hand_on(out, groups)
    return None
