"""What LoRA leaves a gradient to, by the names of modules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mindspeed_ift.checkpoint.names import stage_entries
from mindspeed_ift.config.lora import LORA_TARGETS, MODULES_TO_SAVE, LoraFlags
from mindspeed_ift.parallel.groups import Groups
from tests.tiny_model import tiny_architecture, tiny_model, world_of_one


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    """A world of one."""
    with world_of_one() as started:
        yield started


def test_modules_to_save_are_those_of_the_table() -> None:
    entries = stage_entries(tiny_architecture(), range(2), first_stage=True, last_stage=True)
    assert {name.split(".")[-2] for name, _, _ in entries} == set(MODULES_TO_SAVE)


@pytest.mark.parametrize("saved", MODULES_TO_SAVE)
def test_adapters_and_modules_to_save_have_a_gradient(groups: Groups, saved: str) -> None:
    targets = tuple(name for name in LORA_TARGETS if name != saved)
    model = tiny_model(groups, lora=LoraFlags(targets, lora_modules_to_save=(saved,)))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters = {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(adapters) == 2 * 2 * len(targets) and adapters < trained
    assert {name.split(".")[-2] for name in trained - adapters} == {saved}


def test_the_copy_of_a_tied_embedding_is_trained_with_it() -> None:
    """Its gradient is summed over both: a pipeline's last stage would not come to the sum."""
    lora = LoraFlags(("linear_qkv",), lora_modules_to_save=("word_embeddings",))
    assert lora.is_trained("output_layer.weight", tied=True)
    assert not lora.is_trained("output_layer.weight", tied=False)
    assert lora.is_trained("embedding.word_embeddings.weight", tied=False)
