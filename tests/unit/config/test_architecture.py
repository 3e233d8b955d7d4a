"""Presets and config.json against the known Qwen3 models and transformers, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError

# From the config.json of the models, typed in by hand: layers, hidden, feed-forward, heads, groups, tied.
QWEN3 = {
    "qwen3-0.6b": (28, 1024, 3072, 16, 8, True),
    "qwen3-1.7b": (28, 2048, 6144, 16, 8, True),
    "qwen3-4b": (36, 2560, 9728, 32, 8, True),
    "qwen3-8b": (36, 4096, 12288, 32, 8, False),
    "qwen3-14b": (40, 5120, 17408, 40, 8, False),
    "qwen3-32b": (64, 5120, 25600, 64, 8, False),
}

# The same of those with 128 experts, and the width of one.
EXPERTS = {
    "qwen3-30b-a3b": (48, 2048, 6144, 32, 4, False, 768),
    "qwen3-235b-a22b": (94, 4096, 12288, 64, 4, False, 1536),
}

# As it stands in the folder of Qwen3-8B (transformers 4.51).
QWEN3_8B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MISSING = object()


def folder_with(tmp_path: Path, **changes: Any) -> Path:
    """A folder whose config.json is Qwen3-8B's with some keys changed or, with `MISSING`, taken out."""
    content = {key: value for key, value in {**QWEN3_8B, **changes}.items() if value is not MISSING}
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        Architecture.from_hugging_face(folder)
    assert "config.json" in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [*QWEN3, *EXPERTS])
def test_a_preset_is_the_known_model(name: str) -> None:
    layers, hidden, feed_forward, heads, groups, tied, *width = (QWEN3 | EXPERTS)[name]
    experts = {"num_experts": 128, "moe_router_topk": 8, "moe_ffn_hidden_size": width[0]} if width else {}
    assert Architecture.from_preset(name) == Architecture(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=feed_forward,
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=128,
        vocab_size=151936,
        max_position_embeddings=40960,
        rotary_base=1e6,
        norm_epsilon=1e-6,
        qk_layernorm=True,
        add_qkv_bias=False,
        tied=tied,
        init_method_std=0.02,
        norm_topk_prob=True,
        **experts,
    )


def test_every_preset_is_a_known_model() -> None:
    shipped = Path(__file__).resolve().parents[3] / "mindspeed_ift/config/presets"
    assert {path.stem for path in shipped.iterdir()} == {*QWEN3, *EXPERTS}


@pytest.mark.parametrize("name", ["qwen3-9b", "../presets/qwen3-8b", "qwen3"])
def test_an_unknown_preset_is_answered_with_the_list(name: str) -> None:
    with pytest.raises(UserError, match="one of: qwen3-0.6b, qwen3-1.7b, qwen3-14b, qwen3-235b-a22b, qwen3-30b"):
        Architecture.from_preset(name)


def test_a_preset_may_be_written_as_the_model_is() -> None:
    assert Architecture.from_preset("Qwen3-8B") == Architecture.from_preset("qwen3-8b")


def test_config_json_of_the_model_is_the_preset(tmp_path: Path) -> None:
    assert Architecture.from_hugging_face(folder_with(tmp_path)) == Architecture.from_preset("qwen3-8b")


@pytest.mark.parametrize("name", QWEN3)
def test_what_we_write_is_read_by_transformers_with_the_same_numbers(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, Qwen3Config

    ours = dataclasses.replace(Architecture.from_preset(name), rotary_base=5e6, norm_epsilon=1e-5, init_method_std=0.01)
    content = ours.to_hugging_face("float32")
    assert content["transformers_version"] == "4.51.0", "or transformers warns of a Mistral tokenizer at every load"
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert type(theirs) is Qwen3Config
    assert str(theirs.dtype) == "torch.float32" and theirs.architectures == ["Qwen3ForCausalLM"]
    assert (theirs.num_hidden_layers, theirs.hidden_size, theirs.intermediate_size) == (
        ours.num_layers,
        ours.hidden_size,
        ours.ffn_hidden_size,
    )
    assert (theirs.num_attention_heads, theirs.num_key_value_heads, theirs.head_dim) == (
        ours.num_attention_heads,
        ours.num_query_groups,
        ours.kv_channels,
    )
    assert theirs.rope_parameters["rope_theta"] == 5e6 and theirs.rope_parameters["rope_type"] == "default"
    assert (theirs.rms_norm_eps, theirs.initializer_range, theirs.hidden_act) == (1e-5, 0.01, "silu")
    assert (theirs.vocab_size, theirs.max_position_embeddings) == (151936, 40960)
    assert (theirs.tie_word_embeddings, theirs.attention_bias, theirs.use_sliding_window) == (ours.tied, False, False)
    assert Architecture.from_hugging_face(tmp_path) == ours
    theirs.save_pretrained(tmp_path / "again")  # as transformers 5 writes it, with rope_parameters
    assert "rope_parameters" in (tmp_path / "again/config.json").read_text(encoding="utf-8")
    assert Architecture.from_hugging_face(tmp_path / "again") == ours


@pytest.mark.parametrize(
    ("changes", "base"),
    [
        ({"rope_theta": 10000.0}, 10000.0),
        ({"rope_theta": MISSING, "rope_parameters": {"rope_theta": 5e6, "rope_type": "default"}}, 5e6),
        ({"rope_theta": MISSING, "rope_parameters": {"rope_theta": 500000}}, 5e5),
        ({"rope_theta": 1, "rope_parameters": {"rope_theta": 5e6, "rope_type": "default"}}, 5e6),
        ({"rope_scaling": {"type": "default"}}, 1e6),
        ({"rope_scaling": {}, "rope_parameters": None}, 1e6),
    ],
)
def test_the_rotary_base_is_found_in_old_and_new_files(changes: dict[str, Any], base: float, tmp_path: Path) -> None:
    from transformers import AutoConfig

    folder = folder_with(tmp_path, **changes)
    assert Architecture.from_hugging_face(folder).rotary_base == base
    assert AutoConfig.from_pretrained(folder).rope_parameters["rope_theta"] == base


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"head_dim": MISSING}, "kv_channels", 128),
        ({"head_dim": None, "hidden_size": 2048}, "kv_channels", 64),
        ({"num_key_value_heads": None}, "num_query_groups", 32),
        ({"tie_word_embeddings": True}, "tied", True),
        ({"tie_word_embeddings": MISSING}, "tied", False),
        ({"rms_norm_eps": 1e-5}, "norm_epsilon", 1e-5),
        ({"initializer_range": 0.1}, "init_method_std", 0.1),
        ({"architectures": MISSING}, "num_layers", 36),
    ],
)
def test_keys_that_may_differ_or_be_missing(changes: dict[str, Any], field: str, value: Any, tmp_path: Path) -> None:
    assert getattr(Architecture.from_hugging_face(folder_with(tmp_path, **changes)), field) == value


@pytest.mark.parametrize(
    "key",
    ["num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"]
    + ["vocab_size", "rope_theta"],
)
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    assert f"the key {key} is missing" in refusal(folder_with(tmp_path, **{key: MISSING}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "scaled positions (rope yarn)"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "scaled positions (rope linear)"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}}, "scaled positions (rope yarn)"),
        ({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}, "scaled positions"),
        ({"rope_parameters": "default"}, "must be JSON objects"),
        ({"rope_theta": "1e6"}, "rotary_base '1e6' must be a number over 0"),
        ({"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2"}, "Qwen2MoeForCausalLM is not supported"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "the key num_local_experts is missing"),
        ({"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4}, "moe_router_topk 8 is more than num_experts 4"),
        (
            {
                "architectures": ["Qwen3MoeForCausalLM"],
                "num_experts": 8,
                "num_experts_per_tok": 1,
                "norm_topk_prob": True,
            },
            "moe_router_topk 1 with norm_topk_prob",
        ),
        (
            {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "decoder_sparse_step": 0},
            "decoder_sparse_step must be a whole number of at least 1",
        ),
        (
            {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "mlp_only_layers": list(range(36))},
            "no layer has experts",
        ),
        (
            {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "router_aux_loss_coef": -1},
            "router_aux_loss_coef -1 must be a number",
        ),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "Qwen3ForSequenceClassification is not supported"),
        ({"architectures": MISSING, "model_type": "llama"}, "llama is not supported"),
        ({"architectures": [], "model_type": MISSING}, "None is not supported"),
        ({"architectures": "Qwen3ForCausalLM"}, "is not supported"),
        ({"attention_bias": True}, "attention_bias True is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window True is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"attention_dropout": 0.1}, "attention_dropout 0.1 is not supported"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"num_hidden_layers": "36"}, "num_layers '36' must be a whole number"),
        ({"num_hidden_layers": 36.0}, "num_layers 36.0 must be a whole number"),
        ({"num_hidden_layers": 0}, "num_layers 0 must be a whole number of at least 1"),
        ({"num_hidden_layers": True}, "num_layers True must be a whole number"),
        ({"hidden_size": None}, "hidden_size None must be a whole number"),
        ({"num_attention_heads": 0, "head_dim": None}, "num_attention_heads 0"),
        ({"num_key_value_heads": 5}, "num_query_groups 5 does not divide num_attention_heads 32"),
        ({"head_dim": 127}, "kv_channels 127 must be even"),
        ({"rms_norm_eps": 0}, "norm_epsilon 0 must be a number over 0"),
        ({"tie_word_embeddings": "false"}, "tied 'false' must be true or false"),
    ],
)
def test_what_is_not_computed_here_is_refused(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert expected in refusal(folder_with(tmp_path, **changes))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[]", "a JSON object is needed"),
        (b"null", "a JSON object is needed"),
        (b"{}", "architecture None is not supported"),
    ],
)
def test_a_file_that_is_no_model_is_refused(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert expected in refusal(tmp_path)


def test_a_folder_without_config_json_is_refused(tmp_path: Path) -> None:
    assert "is missing: give the folder of a Hugging Face model" in refusal(tmp_path / "none")


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_written_as_transformers_reads_them(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, Qwen3MoeConfig

    ours = dataclasses.replace(
        Architecture.from_preset(name), norm_topk_prob=False, dense_layers=(0, 5), router_aux_loss_coef=0.0
    )
    (tmp_path / "config.json").write_text(json.dumps(ours.to_hugging_face()), encoding="utf-8")
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert type(theirs) is Qwen3MoeConfig and theirs.architectures == ["Qwen3MoeForCausalLM"]
    assert (theirs.num_experts, theirs.num_experts_per_tok, theirs.norm_topk_prob) == (128, 8, False)
    assert theirs.moe_intermediate_size == ours.moe_ffn_hidden_size and theirs.intermediate_size == ours.ffn_hidden_size
    assert (theirs.mlp_only_layers, theirs.decoder_sparse_step, theirs.router_aux_loss_coef) == ([0, 5], 1, 0.0)
    assert Architecture.from_hugging_face(tmp_path) == ours
    theirs.save_pretrained(tmp_path / "again")
    assert Architecture.from_hugging_face(tmp_path / "again") == ours


def test_layers_without_experts_are_those_of_transformers(tmp_path: Path) -> None:
    """Of every second layer, and of some that are named."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {
        "num_hidden_layers": 6,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
    }
    config = Qwen3MoeConfig(**sizes, num_experts=8, decoder_sparse_step=2, mlp_only_layers=[3])
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        layers = Qwen3MoeForCausalLM(config).model.layers
    content = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(
        json.dumps({**content, "architectures": ["Qwen3MoeForCausalLM"]}), encoding="utf-8"
    )
    ours = Architecture.from_hugging_face(tmp_path)
    assert [ours.has_experts(layer) for layer in range(6)] == [hasattr(layer.mlp, "experts") for layer in layers]
    assert ours.dense_layers == (0, 2, 3, 4)
