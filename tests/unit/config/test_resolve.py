"""Preset, Hugging Face folder, checkpoint and spelled-out flags brought together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.resolve import resolve_architecture
from mindspeed_ift.config.tuning import TuneConfig

QWEN3_8B = (
    "--num-layers 36 --hidden-size 4096 --ffn-hidden-size 12288 --num-attention-heads 32 --group-query-attention "
    "--num-query-groups 8 --kv-channels 128 --qk-layernorm --untie-embeddings-and-output-weights --rotary-base 1000000 "
    "--norm-epsilon 1e-6 --padded-vocab-size 151936"
)
SMALL = "--num-layers 2 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4"


def resolve(
    flags: str, loaded: dict[str, Architecture] | None = None, tokenizer: int = 400
) -> tuple[Architecture, str]:
    return resolve_architecture(parse(TuneConfig, flags.split(), program="test").model, loaded or {}, tokenizer)


def refusal(flags: str, loaded: dict[str, Architecture] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        resolve(flags, loaded)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder of the 8B."""
    content = Architecture.from_preset("qwen3-8b").to_hugging_face()
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


def test_layers_that_do_nothing_are_none_of_the_model() -> None:
    """--num-layers counts them, what describes the model does not."""
    expected = Architecture.from_preset("qwen3-8b")
    model = parse(TuneConfig, QWEN3_8B.replace("36", "38").split(), program="test").model
    assert resolve_architecture(model, {"--load x": expected}, 400, noop_layers=2)[0] == expected
    assert resolve_architecture(model, {}, 400, noop_layers=2)[0].num_layers == 36
    with pytest.raises(UserError, match="num_layers is 36 by --load x, 38 by the flags"):
        resolve_architecture(model, {"--load x": expected}, 400)


def test_all_sources_give_the_same_model(folder: Path) -> None:
    expected = Architecture.from_preset("qwen3-8b")
    loaded = {"--load x": expected}
    assert resolve("--preset qwen3-8b") == (expected, "--preset qwen3-8b")
    assert resolve(f"--hf-cfg-dir {folder}") == (expected, f"--hf-cfg-dir {folder}")
    assert resolve("", loaded) == (expected, "--load x")
    assert resolve(QWEN3_8B) == (expected, "flags")
    assert resolve(f"--preset qwen3-8b --hf-cfg-dir {folder} {QWEN3_8B}", loaded) == (expected, "--load x")


def test_what_is_spelled_out_has_megatrons_defaults() -> None:
    architecture, origin = resolve(SMALL, tokenizer=400)
    assert origin == "flags"
    assert architecture == Architecture(2, 64, 128, 4, 4, 16, 400, qk_layernorm=True, tied=True)


def test_the_vocabulary_is_the_tokenizers_unless_given() -> None:
    assert resolve(SMALL)[0].vocab_size == 400
    assert resolve(SMALL + " --padded-vocab-size 512")[0].vocab_size == 512
    assert resolve(SMALL + " --padded-vocab-size 512 --vocab-size 500")[0].vocab_size == 500


def test_fresh_weights_have_the_deviation_that_is_asked_for() -> None:
    assert resolve("--preset qwen3-8b --init-method-std 0.01")[0].init_method_std == 0.01
    assert resolve(SMALL + " --init-method-std 0.01")[0].init_method_std == 0.01


def test_a_loaded_model_keeps_what_does_not_change_it(folder: Path) -> None:
    """Scripts give the sequence length as --max-position-embeddings; it must not reach the exported config.json."""
    free = "--max-position-embeddings 4096 --init-method-std 0.01"
    expected = Architecture.from_preset("qwen3-8b")
    assert resolve(free, {"--load x": expected})[0] == expected
    assert resolve(f"--hf-cfg-dir {folder} --max-position-embeddings 4096")[0] == expected
    assert resolve(SMALL + " --max-position-embeddings 4096")[0].max_position_embeddings == 4096


@pytest.mark.parametrize(
    ("flag", "field"),
    [
        ("--num-layers 28", "num_layers is 36 by --preset qwen3-8b, 28 by the flags"),
        ("--hidden-size 1024", "hidden_size is 4096 by --preset qwen3-8b, 1024 by the flags"),
        ("--ffn-hidden-size 1024", "ffn_hidden_size"),
        ("--num-attention-heads 16", "num_attention_heads"),
        ("--num-query-groups 4", "num_query_groups"),
        ("--kv-channels 64", "kv_channels"),
        ("--vocab-size 1000", "vocab_size"),
        ("--rotary-base 10000", "rotary_base"),
        ("--norm-epsilon 1e-5", "norm_epsilon"),
        ("--no-untie-embeddings-and-output-weights", "tied is False by --preset qwen3-8b, True by the flags"),
    ],
)
def test_a_flag_that_contradicts_the_source_is_refused(flag: str, field: str) -> None:
    text = refusal(f"--preset qwen3-8b {flag}")
    assert text.startswith(field) and "by --preset qwen3-8b, " in text and "leave one of them out" in text


def test_two_sources_that_differ_are_refused(folder: Path) -> None:
    other = dataclasses.replace(Architecture.from_preset("qwen3-8b"), rotary_base=1e4)
    assert "rotary_base is 10000.0 by --load x, 1000000.0 by --preset qwen3-8b" in refusal(
        "--preset qwen3-8b", {"--load x": other}
    )
    assert ", 28 by --preset qwen3-0.6b" in refusal(f"--hf-cfg-dir {folder} --preset qwen3-0.6b")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", "give --preset, --hf-cfg-dir, or the missing --num-layers --hidden-size --ffn-hidden-size"),
        ("--num-layers 2 --hidden-size 64", "the missing --ffn-hidden-size --num-attention-heads"),
        ("--preset qwen3-9b", "--preset qwen3-9b is unknown"),
        ("--hf-cfg-dir nowhere", "config.json is missing"),
        (SMALL + " --num-query-groups 3", "num_query_groups 3 does not divide num_attention_heads 4"),
        (SMALL + " --num-query-groups 0", "num_query_groups 0 must be a whole number of at least 1"),
        (SMALL + " --num-layers -1", "num_layers -1 must be a whole number of at least 1"),
        (SMALL + " --num-attention-heads 0", "--num-attention-heads 0 does not divide --hidden-size 64"),
        (SMALL + " --num-attention-heads 5", "--num-attention-heads 5 does not divide --hidden-size 64; give --kv-"),
        (SMALL + " --kv-channels 7", "kv_channels 7 must be even"),
        (SMALL + " --rotary-base 0", "rotary_base 0.0 must be a number over 0"),
        (SMALL + " --norm-epsilon -1e-6", "norm_epsilon -1e-06 must be a number over 0"),
        (SMALL + " --vocab-size 0", "vocab_size 0 must be a whole number of at least 1"),
    ],
)
def test_what_is_no_model_is_refused(flags: str, expected: str) -> None:
    assert expected in refusal(flags)
