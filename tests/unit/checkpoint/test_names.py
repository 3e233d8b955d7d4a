"""The name table: every tensor of the Hugging Face model, once, on the stage that holds it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from mindspeed_ift.checkpoint.names import Stage, experts_of, hugging_face_shapes, stage_entries, stages_of
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.layout import Layout
from tests.tiny_model import tiny_architecture


def architecture(tied: bool, layers: int = 4) -> Architecture:
    return tiny_architecture(
        num_layers=layers, hidden_size=8, ffn_hidden_size=12, kv_channels=6, vocab_size=20, tied=tied
    )


@pytest.mark.parametrize("tied", [True, False])
def test_names_and_shapes_are_those_of_transformers(tied: bool) -> None:
    config = Qwen3Config(**architecture(tied).to_hugging_face())
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert hugging_face_shapes(architecture(tied)) == expected


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("pipeline", [1, 2, 4])
def test_every_tensor_has_one_place(tied: bool, pipeline: int) -> None:
    """Over all stages each tensor once; a tied head on a stage of its own is one copy more of the embedding."""
    model = architecture(tied)
    found: list[str] = []
    for stage in stages_of(Layout(pipeline=pipeline).stage_layers(model.num_layers)):
        names = [(name, parts) for name, parts, _ in stage_entries(model, stage)]
        assert len({name for name, _ in names}) == len(names)
        found += [part for _, parts in names for part in parts]
    copies = ["model.embed_tokens.weight"] if tied and pipeline > 1 else []
    assert sorted(found) == sorted([*hugging_face_shapes(model), *copies])


def test_experts_have_names_and_shapes_of_their_own() -> None:
    """Each of the model in one place of its rank; layers without experts as they were."""
    mixed = replace(architecture(False), num_experts=4, moe_router_topk=2, moe_ffn_hidden_size=6, dense_layers=(1,))
    shapes = hugging_face_shapes(mixed)
    assert shapes["model.layers.0.mlp.experts.3.up_proj.weight"] == (6, 8)
    assert shapes["model.layers.0.mlp.experts.3.down_proj.weight"] == (8, 6)
    assert shapes["model.layers.2.mlp.gate.weight"] == (4, 8) and shapes["model.layers.1.mlp.up_proj.weight"] == (12, 8)
    assert not any("layers.1.mlp.experts" in name or "layers.1.mlp.gate.weight" in name for name in shapes)
    found: list[str] = []
    for rank in range(2):
        entries = list(stage_entries(mixed, Stage(range(4)), experts_of(mixed, Layout(expert=2), rank)))
        found += [name for _, names, transform in entries for name in names if transform.of_experts or rank == 0]
        assert ("decoder.layers.0.mlp.experts.weight2", f"experts.{2 * rank}.down_proj") in [
            (name, names[0].partition("mlp.")[2].removesuffix(".weight")) for name, names, _ in entries
        ]
    assert sorted(found) == sorted(shapes)


def test_layers_are_counted_inside_the_stage_and_over_the_model() -> None:
    entries = {name: parts for name, parts, _ in stage_entries(architecture(False), Stage(range(2, 4), first=False))}
    assert entries["decoder.layers.1.mlp.linear_fc1.weight"] == (
        "model.layers.3.mlp.gate_proj.weight",
        "model.layers.3.mlp.up_proj.weight",
    )
    assert entries["output_layer.weight"] == ("lm_head.weight",) and "embedding.word_embeddings.weight" not in entries
