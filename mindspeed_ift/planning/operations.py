"""An architecture and the tokens of a step in, the floating point operations that the step cannot do without out."""

from __future__ import annotations

from mindspeed_ift.config.architecture import Architecture


def step_operations(
    architecture: Architecture, *, real_tokens: float, learnt_tokens: float, squared_lengths: float, adapters: bool
) -> float:
    """Operations of forward and backward pass: no pads, no recomputation, no logits of what is not learnt.

    A matrix product counts two a weight and token forward and four backward; with frozen weights two backward. Causal
    attention counts half of each sample's square. Of a mixture of experts count those that a token meets.

    Args:
        architecture: of the model.
        real_tokens: without pads.
        learnt_tokens: that meet the output layer.
        squared_lengths: sum over the samples of the squared length.
        adapters: weights are frozen, and adapters alone trained (whose own products are left out).
    """
    heads, groups, size = (
        getattr(architecture, name) for name in ("num_attention_heads", "num_query_groups", "kv_channels")
    )
    hidden = architecture.hidden_size
    layers = architecture.num_layers * (hidden * size * (heads + 2 * groups) + heads * size * hidden)
    for layer in range(architecture.num_layers):
        if architecture.has_experts(layer):
            layers += 3 * hidden * architecture.moe_ffn_hidden_size * architecture.moe_router_topk
            layers += hidden * architecture.num_experts  # the router
        else:
            layers += 3 * hidden * architecture.ffn_hidden_size
    products = layers * real_tokens + hidden * architecture.vocab_size * learnt_tokens
    attention = architecture.num_layers * heads * size * squared_lengths  # two products, half of the square each
    return 2.0 * products * (2 if adapters else 3) + 2.0 * attention * 3
