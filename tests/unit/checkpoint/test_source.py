"""What does not fit is one line before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.convert import convert
from mindspeed_ift.checkpoint.source import open_source
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.config.errors import UserError
from tests.training_runs import make_hugging_face_model

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
NORM = "decoder.final_layernorm.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_hugging_face_model(tmp_path / "hf", tied=True, vocab_size=100)


def change(source: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Of a Hugging Face folder."""
    tensors = load_file(source / "model.safetensors")
    edit(tensors)
    save_file({name: value.clone() for name, value in tensors.items()}, source / "model.safetensors")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda one: one.pop("model.norm.weight"), "the tensor model.norm.weight is missing"),
        (lambda one: one.update({"model.x": torch.ones(1)}), "model.safetensors: the tensor model.x is unexpected; is"),
        (lambda one: one.update({HEAD: one[EMBEDDING] + 1}), "lm_head.weight is unexpected and is not the embedding"),
        (
            lambda one: one.update({EMBEDDING: torch.ones(104, 64)}),
            r"has shape \(104, 64\), config.json says \(100, 64\); if its vocabulary was resized, write vocab_size 104",
        ),
        (
            lambda one: one.update({"model.norm.weight": torch.ones(63)}),
            r"model.norm.weight has shape \(63,\), config.json says \(64,\); is it that of these weights\?$",
        ),
        (
            lambda one: one.update({"model.norm.weight": torch.ones(64, dtype=torch.int64)}),
            "model.norm.weight is missing, or no tensor of F32, F16 or BF16",
        ),
    ],
    ids=["missing", "extra", "head", "vocabulary", "shape", "type"],
)
def test_a_folder_that_is_not_its_config(
    source: Path, tmp_path: Path, edit: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    change(source, edit)
    with pytest.raises(UserError, match=message):
        convert(ConvertConfig("hf", "mg", source, tmp_path / "mg"))
    assert not (tmp_path / "mg").exists()


def test_bytes_of_a_quantized_weight_are_not_taken_for_numbers(source: Path) -> None:
    """Training and answers read only the tensors that their rank holds, one by one."""
    quantized = "model.layers.0.mlp.up_proj.weight"
    change(source, lambda one: one.update({quantized: one[quantized].to(torch.float8_e4m3fn)}))
    opened = open_source(source)
    with pytest.raises(UserError, match=f"{quantized} is missing, or no tensor of F32, F16 or BF16"):
        opened.source.tensor(quantized, (128, 64))


def test_a_tied_head_that_is_the_embedding_may_be_there(source: Path, tmp_path: Path) -> None:
    change(source, lambda one: one.update({HEAD: one[EMBEDDING]}))
    convert(ConvertConfig("hf", "mg", source, tmp_path / "mg"))
    convert(ConvertConfig("mg", "hf", tmp_path / "mg", tmp_path / "back"))
    assert HEAD not in load_file(tmp_path / "back/model.safetensors")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda model, _: model.pop(NORM), f"the tensor {NORM} is missing from stage 0"),
        (
            lambda model, _: model.update(x=torch.ones(1)),
            "stage 0 has the tensor x, which the architecture of manifest",
        ),
        (
            lambda _, facts: facts["architecture"].update(vocab_size=120),
            r"makes a model.embed_tokens.weight of shape \(100, 64\), the architecture says \(120, 64\)",
        ),
    ],
    ids=["missing", "extra", "vocabulary"],
)
@pytest.mark.parametrize("target", ["hf", "mg"])
def test_a_checkpoint_that_is_not_its_manifest(
    source: Path, tmp_path: Path, edit: Callable[[dict[str, Any], dict[str, Any]], Any], message: str, target: Any
) -> None:
    convert(ConvertConfig("hf", "mg", source, tmp_path / "mg"))
    folder = tmp_path / "mg/iter_0000001"
    facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    state = megatron.read_file(folder, "mp_rank_00/model_optim_rng.pt")
    edit(state["model"], facts)
    torch.save(state, folder / "mp_rank_00/model_optim_rng.pt")
    (folder / "manifest.json").write_text(json.dumps({**facts, "files": {}}), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        convert(ConvertConfig("mg", target, tmp_path / "mg", tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_config_of_another_model_is_named_by_its_first_difference(source: Path, tmp_path: Path) -> None:
    other = make_hugging_face_model(tmp_path / "other", tied=True, vocab_size=100, layers=3)
    convert(ConvertConfig("hf", "mg", source, tmp_path / "mg"))
    with pytest.raises(UserError, match="describes another architecture than .*: num_layers 3, not 2"):
        convert(ConvertConfig("mg", "hf", tmp_path / "mg", tmp_path / "new", hf_cfg_dir=other))
