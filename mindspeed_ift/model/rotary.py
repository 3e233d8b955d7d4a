"""Rotary embedding from explicit position ids, so that packed rows and any split of a row are nothing special."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PositionRotary(nn.Module):
    """Stands in for Megatron's RotaryEmbedding, which ignores position ids, counts from 0, and gives angles.

    The model's forward leaves the micro-batch's position ids here before Megatron asks; what it gets it hands to every
    layer's attention (`attention.RotaryAttention`). Cosines and sines are taken once a micro-batch.

    Args:
        head_size: channels of one head, all rotated.
        base: base of the frequencies.
        dtype: of the answer; angles are computed in fp32.

    Source: Su et al. 2021, in the half-split form of Hugging Face's Qwen3RotaryEmbedding.
    """

    def __init__(self, head_size: int, base: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.head_size, self.base, self.dtype = head_size, base, dtype
        self._turns: Tensor | None = None

    def set_positions(self, position_ids: Tensor) -> None:
        """Take the positions of the next forward pass, int64 ``[B, S]``."""
        exponent = torch.arange(0, self.head_size, 2, dtype=torch.float32, device=position_ids.device) / self.head_size
        angles = position_ids.t().float()[..., None] * (1.0 / self.base**exponent)  # [S, B, D/2]
        angles = torch.cat([angles, angles], dim=-1)[:, :, None]
        self._turns = torch.stack([angles.cos(), angles.sin()]).to(self.dtype)

    def get_rotary_seq_len(self, *_: object, **__: object) -> int:
        """Megatron asks for a length before it asks for the angles; positions already say it."""
        return 0

    def forward(self, *_: object, **__: object) -> Tensor:
        """Cosines and sines of the angles, ``[2, S, B, 1, D]``."""
        assert self._turns is not None, "set_positions comes first"
        return self._turns
