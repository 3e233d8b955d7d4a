"""What LoRA leaves a gradient to, by the names of modules."""

from __future__ import annotations

import pytest

from mindspeed_ift.checkpoint.names import Stage, stage_entries
from mindspeed_ift.config.lora import LORA_TARGETS, MODULES_TO_SAVE, LoraFlags
from mindspeed_ift.model.build import ModelOptions, build_model
from mindspeed_ift.parallel.groups import Groups
from tests.tiny_model import tiny_architecture, tiny_experts, tiny_model


def test_modules_to_save_are_those_of_the_table() -> None:
    found = set()
    for architecture in (tiny_architecture(), tiny_experts()):
        entries = stage_entries(architecture, Stage(range(2)))
        found |= {name.split(".")[-2] for name, _, _ in entries}
    assert found - {"experts"} == set(MODULES_TO_SAVE)


@pytest.mark.parametrize("saved", [name for name in MODULES_TO_SAVE if name != "router"])
def test_adapters_and_modules_to_save_have_a_gradient(groups: Groups, saved: str) -> None:
    targets = tuple(name for name in LORA_TARGETS if name != saved)
    model = tiny_model(groups, lora=LoraFlags(targets, lora_modules_to_save=(saved,)))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters = {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(adapters) == 2 * 2 * len(targets) and adapters < trained
    assert {name.split(".")[-2] for name in trained - adapters} == {saved}


@pytest.mark.parametrize(
    ("target", "saved", "expected"),
    [
        ("linear_fc1", "linear_fc2", {"weight2", "lora_A1", "lora_B1"}),
        ("linear_fc2", "router", {"lora_A2", "lora_B2", "router.weight"}),
    ],
)
def test_experts_are_known_by_the_names_of_their_modules(
    groups: Groups, target: str, saved: str, expected: set[str]
) -> None:
    lora = LoraFlags((target,), lora_modules_to_save=(saved,))
    model = build_model(tiny_experts(), ModelOptions(padded_vocab=32, lora=lora), groups)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    names = {one if "." in one else f"experts.{one}" for one in expected}
    assert trained == {f"decoder.layers.{layer}.mlp.{one}" for layer in range(2) for one in names}


def test_the_copy_of_a_tied_embedding_is_trained_with_it() -> None:
    """Its gradient is summed over both: a pipeline's last stage would not come to the sum."""
    lora = LoraFlags(("linear_qkv",), lora_modules_to_save=("word_embeddings",))
    assert lora.is_trained("output_layer.weight", tied=True)
    assert not lora.is_trained("output_layer.weight", tied=False)
    assert lora.is_trained("embedding.word_embeddings.weight", tied=False)
