"""Operations of a step: against a count of the model's own products."""

from __future__ import annotations

import pytest
from torch.utils.flop_counter import FlopCounterMode

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.planning.operations import step_operations
from tests.tiny_model import tiny_architecture, tiny_experts


@pytest.mark.parametrize("shape", [tiny_architecture(), tiny_experts(dense_layers=(1,))], ids=["dense", "experts"])
def test_products_are_those_that_torch_counts(shape: Architecture) -> None:
    """Of transformers' model on one sample of 12 tokens, which computes the whole square of attention."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    told = {key: value for key, value in shape.to_hugging_face("float32").items() if key != "model_type"}
    told["attn_implementation"] = "eager"
    model: torch.nn.Module
    if shape.num_experts:
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**told, experts_implementation="eager"))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**told))
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
