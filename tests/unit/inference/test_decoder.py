"""Reading with caches gives the logits of reading the whole row each time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.lora import LoraFlags
from mindspeed_ift.devices.device import current
from mindspeed_ift.inference import layers
from mindspeed_ift.inference.decoder import Decoder
from mindspeed_ift.model.build import ModelOptions, Qwen3Model, build_model
from mindspeed_ift.parallel.groups import Groups
from tests.tiny_model import tiny_architecture, tiny_experts, tiny_model, world_of_one
from tests.tolerances import LOGITS

ROWS = [[3, 4, 5, 6], [7, 8], [9, 1, 2]]
THEN = [[11, 12, 13], [14, 15, 16], [17, 18, 19]]


def _whole(model: Qwen3Model, row: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([row]), torch.arange(len(row))[None], None)[0, -1, : model.architecture.vocab_size]


def _model(groups: Groups, architecture: Architecture, lora: LoraFlags | None) -> Qwen3Model:
    """No two weights alike, those of norms, biases and adapters neither."""
    model = build_model(architecture, ModelOptions(padded_vocab=32, lora=lora), groups)
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name or "lora" in name:
                parameter.uniform_(0.5, 1.5)
            elif "router" in name:
                parameter.normal_()
    return model.eval()


ALL_LINEAR = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")


@pytest.mark.parametrize(
    ("architecture", "lora"),
    [
        (tiny_architecture(), None),
        (tiny_architecture(tied=True), LoraFlags(lora_r=2, lora_alpha=2, lora_target_modules=ALL_LINEAR)),
        (tiny_architecture(), LoraFlags(lora_r=2, lora_alpha=2, use_dora=True, lora_target_modules=ALL_LINEAR)),
        (tiny_architecture(qk_layernorm=False, add_qkv_bias=True), None),
        (tiny_experts(), None),
        (tiny_experts(norm_topk_prob=False, dense_layers=(0,)), None),
        (tiny_experts(), LoraFlags(lora_r=2, lora_alpha=2, lora_target_modules=ALL_LINEAR)),
    ],
    ids=["dense", "tied, LoRA", "DoRA", "Qwen2.5", "experts", "experts, shares of all", "experts, LoRA"],
)
def test_rows_of_any_lengths_as_if_each_were_alone(architecture: Architecture, lora: LoraFlags | None) -> None:
    """Prompts padded to the longest, then three tokens each; after the first, the row in the middle leaves.

    Held to Megatron's own forward pass over each whole row.
    """
    with world_of_one() as groups:
        model = _model(groups, architecture, lora)
        decoder, rows, left = Decoder(model, groups), [list(row) for row in ROWS], [0, 1, 2]
        logits = decoder.start(ROWS, 4)
        for turn in range(4):
            assert logits is not None
            expected = torch.stack([_whole(model, rows[row]) for row in left])
            torch.testing.assert_close(logits, expected, **LOGITS)
            if turn == 1:
                left = [0, 2]
                decoder.keep([0, 2])
            if turn < 3:
                for row in left:
                    rows[row].append(THEN[row][turn])
                logits = decoder.step([rows[row][-1] for row in left])
        again = decoder.start([[5, 6]], 2)  # nothing is left of the rows before
        assert again is not None
        torch.testing.assert_close(again[0], _whole(model, [5, 6]), **LOGITS)


class Products(TorchFunctionMode):
    """Remembers the shape of what is multiplied with a weight of 40 rows, the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if function is torch.nn.functional.linear and len(given["weight"]) == 40:
            self.shapes.append(tuple(args[0].shape))
        return function(*args, **given)


def test_products_by_the_kernel_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of large weights are taken; oneDNN's on the CPU."""
    used = []
    monkeypatch.setattr(layers, "LARGE", 1)
    with world_of_one() as groups:
        model = _model(groups, tiny_architecture(), None)
        kernels = current().kernels
        counted = replace(kernels, linear=lambda *given: used.append(given[0].shape) or kernels.linear(*given))
        with monkeypatch.context() as patch:
            patch.setattr(layers, "current", lambda: replace(current(), kernels=counted))
            decoder = Decoder(model, groups)
        found = decoder.start(ROWS, 2)
        assert found is not None and len(used) == 2 * 4 + 1
        torch.testing.assert_close(found, torch.stack([_whole(model, row) for row in ROWS]), **LOGITS)


def test_only_the_asked_position_meets_the_vocabulary() -> None:
    with world_of_one() as groups:
        decoder, products = Decoder(tiny_model(groups, padded_vocab=40).eval(), groups), Products()
        with products:
            decoder.start(ROWS, 1)
    assert products.shapes == [(1, 3, 16)]
