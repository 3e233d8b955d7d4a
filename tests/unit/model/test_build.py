"""From architecture and options to Megatron's model: its config, fresh weights and undrawn ones, filling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mindspeed_ift.checkpoint.names import Stage, stage_entries
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout
from mindspeed_ift.mcore import seed_random_streams
from mindspeed_ift.model.attention import BoundaryAttention
from mindspeed_ift.model.backend import RMSNorm
from mindspeed_ift.model.build import ModelOptions, Qwen3Model, build_model, transformer_config
from mindspeed_ift.model.weights import fill
from mindspeed_ift.parallel.groups import Groups
from tests.tiny_model import tiny_architecture, tiny_model


def test_the_config_is_the_architecture(groups: Groups) -> None:
    architecture = tiny_architecture(norm_epsilon=1e-5, init_method_std=0.03)
    config = transformer_config(architecture, ModelOptions(padded_vocab=32), groups)
    for field in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups"):
        assert getattr(config, field) == getattr(architecture, field)
    assert config.kv_channels == 4 and config.layernorm_epsilon == 1e-5 and config.init_method_std == 0.03
    assert config.gated_linear_unit and not config.add_bias_linear and config.calculate_per_token_loss
    assert config.hidden_dropout == config.attention_dropout == 0.0


@pytest.mark.parametrize(
    ("recompute", "expected"),
    [
        ((None, None, None), (None, None, None)),
        (("selective", None, None), ("selective", None, None)),
        (("full", "uniform", None), ("full", "uniform", 1)),
        (("full", "block", 2), ("full", "block", 2)),
    ],
)
def test_recompute_is_as_asked(groups: Groups, recompute: tuple, expected: tuple) -> None:
    config = transformer_config(tiny_architecture(), ModelOptions(padded_vocab=32, recompute=recompute), groups)
    assert (config.recompute_granularity, config.recompute_method, config.recompute_num_layers) == expected


def test_norms_and_attention_are_ours_and_names_those_of_the_table(groups: Groups) -> None:
    model = tiny_model(groups)
    kinds = [type(module).__name__ for module in model.modules()]
    # Two norms of the layer and two of the heads, in each of two layers, and the last.
    assert sum(isinstance(module, RMSNorm) for module in model.modules()) == 9
    assert sum(isinstance(module, BoundaryAttention) for module in model.modules()) == 2
    assert not [kind for kind in kinds if kind in ("DotProductAttention", "WrappedTorchNorm", "RotaryEmbedding")]
    entries = stage_entries(model.architecture, Stage(model.layer_numbers))
    assert {name for name, _, _ in entries} == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_weight_has_the_dtype(groups: Groups, dtype: torch.dtype) -> None:
    assert {parameter.dtype for parameter in tiny_model(groups, dtype=dtype).parameters()} == {dtype}


def test_fresh_weights_are_drawn_from_the_seed(groups: Groups) -> None:
    def drawn(seed: int) -> torch.Tensor:
        seed_random_streams(seed)  # as `groups.start` does
        return tiny_model(groups).embedding.word_embeddings.weight.detach().clone()

    first = drawn(1)
    assert torch.equal(first, drawn(1)) and not torch.equal(first, drawn(2))
    assert float(first.std()) == pytest.approx(0.02, rel=0.2)


def test_weights_that_will_be_loaded_are_not_drawn(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank would draw whole matrices on the host: minutes, for nothing."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were drawn")

    source = dict(tiny_model(groups).named_parameters())
    monkeypatch.setattr(torch.nn.init, "normal_", refuse)
    with pytest.raises(AssertionError, match="drawn"):
        tiny_model(groups)
    model = tiny_model(groups, fresh=False)
    fill(model, {name: parameter.detach() for name, parameter in source.items()}, "somewhere")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, source[name])
        # Megatron's gradient norm counts a weight on every tensor rank only if it is marked as sharded.
        for mark in ("tensor_model_parallel", "partition_dim", "sequence_parallel", "allreduce"):
            assert getattr(parameter, mark, None) == getattr(source[name], mark, None), name
    assert sum(getattr(parameter, "tensor_model_parallel", False) for parameter in model.parameters()) == 10


def test_filling_takes_every_weight_and_no_other(groups: Groups) -> None:
    model = tiny_model(groups)
    whole = {name: torch.full_like(parameter, 0.5) for name, parameter in model.named_parameters()}
    fill(model, whole, "somewhere")
    assert all((parameter == 0.5).all() for parameter in model.parameters())
    name = "decoder.final_layernorm.weight"
    without = {key: value for key, value in whole.items() if key != name}
    with pytest.raises(UserError, match=f"somewhere: the tensor {name} is missing; is it a checkpoint of this arch"):
        fill(model, without, "somewhere")
    with pytest.raises(UserError, match="somewhere: the tensor extra is unexpected"):
        fill(model, {**whole, "extra": torch.ones(1)}, "somewhere")
    with pytest.raises(UserError, match=rf"somewhere: {name} has shape .3,., the model .16,."):
        fill(model, {**whole, name: torch.ones(3)}, "somewhere")


def test_the_padding_of_the_vocabulary_changes_no_loss(groups: Groups) -> None:
    narrow, wide = tiny_model(groups, padded_vocab=30), tiny_model(groups, padded_vocab=40)
    weights = {name: parameter.detach() for name, parameter in narrow.named_parameters()}
    name = "embedding.word_embeddings.weight"
    assert build_model(tiny_architecture(tied=True), ModelOptions(padded_vocab=32), groups).output_layer.weight is None
    padded = {key: weights[key] for key in weights}
    for key in (name, "output_layer.weight"):
        padded[key] = torch.cat([weights[key], torch.full((10, 16), 3.0)])
    fill(wide, padded, "padded")
    tokens = torch.randint(0, 30, (2, 9), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(9).expand(2, 9)
    losses = [m(tokens, positions, None, labels=tokens, loss_mask=torch.ones(2, 9)).item() for m in (narrow, wide)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_fresh_weights_of_a_pipeline_stage_are_those_of_the_whole_model(groups: Groups) -> None:
    """Layers and output layer, whatever is drawn before them and however the vocabulary is padded."""
    architecture = tiny_architecture(num_layers=4, tied=False)
    whole = build_model(architecture, ModelOptions(padded_vocab=32), groups)
    place = replace(groups, layout=Layout(pipeline=2), pipeline_rank=1)
    options = ModelOptions(padded_vocab=48)
    stage = Qwen3Model(transformer_config(architecture, options, place), architecture, options, place, chunk=0)
    expected, found = dict(whole.named_parameters()), dict(stage.named_parameters())
    assert not torch.equal(
        expected["decoder.layers.0.mlp.linear_fc1.weight"], found["decoder.layers.0.mlp.linear_fc1.weight"]
    )
    for name, value in found.items():
        of_whole = expected[name.replace("layers.0.", "layers.2.").replace("layers.1.", "layers.3.")]
        assert torch.equal(value[: len(of_whole)], of_whole), name
