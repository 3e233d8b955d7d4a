"""Attention with the device's kernels: queries and keys are turned, then attend within the boundaries of the batch.

Under context parallelism the kernel works inside the algorithm that `parallel.context.attention` chooses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mindspeed_ift.devices.device import current
from mindspeed_ift.mcore import ProcessGroupCollection, SelfAttention, TransformerConfig
from mindspeed_ift.parallel.context.attention import choose_attention


class BoundaryAttention(nn.Module):
    """Stands in for Megatron's DotProductAttention.

    The boundaries travel in the place of the attention mask, as an int32 tensor on the host: Megatron hands it untouched
    to every layer of a stage, recompute keeps it with its micro-batch, and reading it costs no device sync.
    """

    def __init__(
        self, config: TransformerConfig, layer_number: int, pg_collection: ProcessGroupCollection, **_: Any
    ) -> None:
        super().__init__()
        self.config, self.layer_number = config, layer_number
        self.attend = choose_attention(config.cp_comm_type, pg_collection, current().kernels)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        """Attend within segments.

        Args:
            query: ``[S, B, N, D]``: this rank's positions of the rows.
            key: ``[S, B, G, D]``.
            value: ``[S, B, G, D]``.
            attention_mask: boundaries of the whole rows, int32 ``[n + 1]``, or None.

        Returns:
            ``[S, B, N * D]``.
        """
        return self.attend(query, key, value, attention_mask).flatten(2)


class RotaryAttention(SelfAttention):
    """Megatron's self-attention, which turns queries and keys by the device's kernel.

    Megatron would take cosines and sines anew in each layer, for queries and for keys.

    Args:
        drawn_from: seed of what follows: the fresh weights of the layer, of which these are the first. None: no seed.
        arguments, options: of Megatron's.
    """

    def __init__(self, *arguments: Any, drawn_from: int | None = None, **options: Any) -> None:
        if drawn_from is not None:
            torch.manual_seed(drawn_from)
        super().__init__(*arguments, **options)
        self.rotate = current().kernels.rotary

    def forward(self, *arguments: Any, rotary_pos_emb: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
        """As Megatron's; ``rotary_pos_emb`` are cosines and sines, ``[2, S, B, 1, D]``."""
        self._turns = rotary_pos_emb
        return super().forward(*arguments, rotary_pos_emb=None, **options)

    def get_query_key_value_tensors(self, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[S, B, N, D]`` and keys ``[S, B, G, D]``, turned, and values ``[S, B, G, D]``."""
        query, key, value = super().get_query_key_value_tensors(*arguments, **options)
        cosine, sine = self._turns
        return self.rotate(query, cosine, sine), self.rotate(key, cosine, sine), value
