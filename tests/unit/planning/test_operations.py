"""Operations of a step: against a count of the model's own products."""

from __future__ import annotations

from torch.utils.flop_counter import FlopCounterMode

from mindspeed_ift.planning.operations import step_operations
from tests.tiny_model import tiny_architecture, tiny_experts


def test_products_are_those_that_torch_counts() -> None:
    """Of Hugging Face's model on one sample of 12 tokens, which computes the whole square of attention."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = tiny_architecture()
    config = Qwen3Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.ffn_hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_query_groups,
        head_dim=shape.kv_channels,
        attn_implementation="eager",
    )
    model = Qwen3ForCausalLM(config)
    ids = torch.arange(12)[None]
    with FlopCounterMode(display=False) as counter:
        model(ids).logits.sum().backward()
    rotary = sum(
        count for name, counts in counter.get_flop_counts().items() if "rotary" in name for count in counts.values()
    )
    ours = step_operations(shape, real_tokens=12, learnt_tokens=12, squared_lengths=2 * 12 * 12, adapters=False)
    assert counter.get_total_flops() - rotary == ours


def test_of_experts_those_count_that_a_token_meets() -> None:
    """Against the products of transformers' model, one layer of it dense."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    shape = tiny_experts(dense_layers=(1,))
    config = Qwen3MoeConfig(
        **{key: value for key, value in shape.to_hugging_face("float32").items() if key != "model_type"},
        attn_implementation="eager",
        experts_implementation="eager",
    )
    model = Qwen3MoeForCausalLM(config)
    ids = torch.arange(12)[None]
    with FlopCounterMode(display=False) as counter:
        model(ids).logits.sum().backward()
    rotary = sum(
        count for name, counts in counter.get_flop_counts().items() if "rotary" in name for count in counts.values()
    )
    ours = step_operations(shape, real_tokens=12, learnt_tokens=12, squared_lengths=2 * 12 * 12, adapters=False)
    assert counter.get_total_flops() - rotary == ours


def test_frozen_weights_have_no_gradient() -> None:
    counts = {"real_tokens": 10, "learnt_tokens": 5, "squared_lengths": 0}
    shape = tiny_architecture()
    assert step_operations(shape, **counts, adapters=True) * 3 == step_operations(shape, **counts, adapters=False) * 2
