"""Tokens to experts and back by the device's kernels, against Megatron's own functions."""

from __future__ import annotations

import pytest
import torch

from mindspeed_ift.mcore import MoELayer, moe_utils
from mindspeed_ift.model.build import ModelOptions, build_model
from mindspeed_ift.model.dispatch import KernelDispatcher
from tests.tiny_model import tiny_architecture, world_of_one
from tests.tolerances import KERNEL


@pytest.mark.parametrize("top", [1, 3])
def test_tokens_go_where_megatron_sends_them(top: int) -> None:
    architecture = tiny_architecture(num_experts=8, moe_router_topk=top, moe_ffn_hidden_size=16, norm_topk_prob=False)
    generator = torch.Generator().manual_seed(2)
    with world_of_one() as groups:
        model = build_model(architecture, ModelOptions(padded_vocab=32), groups)
        (block, *_) = [layer.mlp for layer in model.decoder.layers if isinstance(layer.mlp, MoELayer)]
        dispatcher = block.token_dispatcher
        assert isinstance(dispatcher, KernelDispatcher)
        hidden = torch.randn(5, 2, architecture.hidden_size, generator=generator)
        scores = torch.rand(10, 8, generator=generator)
        chosen = torch.zeros(10, 8, dtype=torch.bool).scatter(1, scores.topk(top).indices, True)
        probs = scores * chosen
        ordered, weights = dispatcher.dispatch_preprocess(hidden, chosen, probs)
        # Newer ones want the number of copies, and return more.
        expected, expected_weights, mapping, *_ = moe_utils.permute(hidden.view(10, -1), chosen, probs, 10 * top)
        assert torch.equal(ordered, expected) and torch.equal(weights, expected_weights)
        copies = torch.randn(ordered.shape, generator=generator)
        back = moe_utils.unpermute(copies, mapping, torch.Size([10, architecture.hidden_size]), routing_map=chosen)
        torch.testing.assert_close(dispatcher.combine_postprocess(copies), back.view(5, 2, -1), **KERNEL)
