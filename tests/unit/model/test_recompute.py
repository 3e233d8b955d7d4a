"""Activations that are computed again: as often as asked, and gradients to the bit as without."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from mindspeed_ift.mcore import MLP, MoEAuxLossAutoScaler
from mindspeed_ift.model.attention import BoundaryAttention
from mindspeed_ift.model.build import ModelOptions, build_model
from mindspeed_ift.model.experts import routers
from mindspeed_ift.parallel.groups import Groups
from tests.tiny_model import tiny_architecture, tiny_experts

LAYERS = 4
# Granularity, method, number of layers -> how often attention and feed-forward blocks run in a forward and backward pass.
CASES = {
    (None, None, None): (LAYERS, LAYERS),
    ("selective", None, None): (2 * LAYERS, LAYERS),
    ("full", "uniform", 1): (2 * LAYERS, 2 * LAYERS),
    ("full", "uniform", 2): (2 * LAYERS, 2 * LAYERS),
    ("full", "block", 1): (LAYERS + 1, LAYERS + 1),
    ("full", "block", 2): (LAYERS + 2, LAYERS + 2),
}


def gradients(groups: Groups, recompute: tuple) -> tuple[dict[str, torch.Tensor], Counter]:
    """Of the loss over a packed row; and calls by kind of module."""
    model = build_model(
        tiny_architecture(num_layers=LAYERS), ModelOptions(padded_vocab=32, recompute=recompute), groups
    )
    generator, calls = torch.Generator().manual_seed(3), Counter()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    for module in model.modules():
        for kind, part in (("attention", BoundaryAttention), ("mlp", MLP)):
            if isinstance(module, part):
                module.register_forward_hook(lambda *_, kind=kind: calls.update([kind]))
    tokens = torch.randint(30, (1, 17), generator=generator)
    positions = torch.tensor([[*range(5), *range(7), *range(4)]])
    boundaries = torch.tensor([0, 5, 12, 16], dtype=torch.int32)
    model(tokens[:, :-1], positions, boundaries, labels=tokens[:, 1:], loss_mask=torch.ones(1, 16)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, calls


@pytest.mark.parametrize("recompute", CASES, ids=lambda case: " ".join(str(one) for one in case if one) or "none")
def test_gradients_are_those_without_recompute(groups: Groups, recompute: tuple) -> None:
    expected, _ = gradients(groups, (None, None, None))
    found, calls = gradients(groups, recompute)
    assert (calls["attention"], calls["mlp"]) == CASES[recompute]
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(gradient.abs().max() > 0.1 for gradient in expected.values())


def test_pads_are_left_out_of_the_balance_of_layers_that_are_not_recomputed(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What no schedule has set, the backward pass would set for the whole process, in another shape than schedules do.
    monkeypatch.setattr(MoEAuxLossAutoScaler, "main_loss_backward_scale", torch.ones(1))
    found = {}
    for method, pads in ((None, 9), ("block", 9), (None, 0)):
        recompute = ("full" if method else None, method, 1 if method else None)
        options = ModelOptions(padded_vocab=32, recompute=recompute, aux_loss_coeff=0.1)
        torch.manual_seed(3)
        model = build_model(tiny_experts(num_layers=3, init_method_std=0.2), options, groups)
        generator = torch.Generator().manual_seed(3)
        tokens, places = torch.randint(30, (1, 17), generator=generator), torch.arange(16)[None]
        mask = (places < 16 - pads).float()
        model(tokens[:, :-1], places, None, labels=tokens[:, 1:], loss_mask=mask, pads=places >= 16 - pads).backward()
        found[method, pads] = [float(router.balance_sum) for router in routers([model])]
    assert found["block", 9] == found[None, 9] != found[None, 0]
