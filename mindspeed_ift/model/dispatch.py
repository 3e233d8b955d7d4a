"""Tokens on their way to experts and back: Megatron's exchange between ranks, around the device's kernels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mindspeed_ift.devices.device import current
from mindspeed_ift.mcore import MoEAlltoAllTokenDispatcher, MoELayer, ProcessGroupCollection

# Shapes: T tokens of this rank, K experts of a token, E experts of all ranks, H hidden size.


class KernelDispatcher(MoEAlltoAllTokenDispatcher):
    """Megatron's, which orders tokens by expert, and puts them back, by the device's kernels.

    Megatron's own reads from the device how many tokens there are, and adds token by token. Experts have no capacity, and
    none is shared.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        kernels = current().kernels
        self.order, self.restore = kernels.permute, kernels.unpermute

    def dispatch_preprocess(
        self, hidden_states: Tensor, routing_map: Tensor, probs: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Each token as often as it has experts, ordered by expert, and the weights of these experts in that order.

        Args:
            hidden_states: ``[..., H]``, T tokens in all.
            routing_map: bool ``[T, E]``, K experts a token.
            probs: ``[T, E]``.
        """
        self.hidden_shape = hidden_states.shape
        self.probs, self.routing_map = probs, routing_map
        tokens = hidden_states.view(-1, self.hidden_shape[-1])
        self.hidden_shape_before_permute = tokens.shape
        counts = self.preprocess(routing_map)
        self.tokens_per_expert = self._maybe_dtoh_and_synchronize("before_permutation_1", counts)
        # As many of each token, so that nothing is read from the device; the weights put them in ascending order.
        descending = torch.arange(routing_map.shape[1], 0, -1, dtype=torch.float32, device=routing_map.device)
        experts = (routing_map * descending).topk(self.config.moe_router_topk, -1).indices
        ordered, self.places = self.order(tokens, experts)
        weights = probs.gather(1, experts).flatten()
        return ordered, torch.zeros_like(weights).scatter(0, self.places.long(), weights)

    def combine_postprocess(self, permutated_local_input_tokens: Tensor) -> Tensor:
        """The sum of each token's copies, which come back ordered by expert, in the shape that came in."""
        summed = self.restore(permutated_local_input_tokens, self.places, self.config.moe_router_topk)
        return summed.view(self.hidden_shape)


def dispatch_by_kernels(layers: Iterable[nn.Module], groups: ProcessGroupCollection) -> None:
    """Give layers with experts the dispatcher; Megatron's layer knows its own only."""
    for layer in layers:
        if isinstance(layer.mlp, MoELayer):
            block = layer.mlp
            block.token_dispatcher = KernelDispatcher(
                block.num_local_experts, block.local_expert_indices, config=block.config, pg_collection=groups
            )
