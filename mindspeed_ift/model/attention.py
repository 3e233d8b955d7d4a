"""Core attention: Megatron's queries, keys and values to the device's kernel, with the boundaries of the batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mindspeed_ift.devices.device import current
from mindspeed_ift.mcore import TransformerConfig


class BoundaryAttention(nn.Module):
    """Stands in for Megatron's DotProductAttention.

    The boundaries travel in the place of the attention mask, as an int32 tensor on the host: Megatron hands it untouched
    to every layer of a stage, recompute keeps it with its micro-batch, and reading it costs no device sync.
    """

    def __init__(self, config: TransformerConfig, layer_number: int, **_: Any) -> None:
        super().__init__()
        self.config, self.layer_number = config, layer_number
        self.kernel = current().kernels.attention

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        """Attend within segments.

        Args:
            query: ``[S, B, N, D]``.
            key: ``[S, B, G, D]``.
            value: ``[S, B, G, D]``.
            attention_mask: boundaries, int32 ``[n + 1]``, or None.

        Returns:
            ``[S, B, N * D]``.
        """
        return self.kernel(query, key, value, attention_mask).flatten(2)
