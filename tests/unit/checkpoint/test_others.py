"""Checkpoints of MindSpeed-LLM: theirs are read in any layout, and ours have the folders, names and values of theirs."""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.convert import convert
from mindspeed_ift.checkpoint.inspection import open_weights
from mindspeed_ift.checkpoint.loading import load_without_code
from mindspeed_ift.checkpoint.source import open_source
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.config.errors import UserError
from tests.megatron_files import write_as_mindspeed_llm
from tests.training_runs import make_hugging_face_model

FILE = "iter_0000001/mp_rank_00/model_optim_rng.pt"
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one": ({}, {}),
    "tp 2": ({"tensor": 2}, {"target_tensor_parallel_size": 2}),
    "pp 2": ({"pipeline": 2}, {"target_pipeline_parallel_size": 2}),
    "tp 2 pp 2": ({"tensor": 2, "pipeline": 2}, {"target_tensor_parallel_size": 2, "target_pipeline_parallel_size": 2}),
    "pp 2 vpp 2": (
        {"pipeline": 2, "virtual": 2},
        {"target_pipeline_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 1},
    ),
}
EXPERTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ep 2": ({"expert": 2}, {"target_expert_parallel_size": 2}),
    "tp 2 ep 2": ({"tensor": 2, "expert": 2}, {"target_tensor_parallel_size": 2, "target_expert_parallel_size": 2}),
    "tp 2 ep 4 etp 1": (
        {"tensor": 2, "expert": 4, "expert_tensor": 1},
        {"target_tensor_parallel_size": 2, "target_expert_parallel_size": 4, "expert_tensor_parallel_size": 1},
    ),
    "tp 2 pp 2 ep 2": (
        {"tensor": 2, "pipeline": 2, "expert": 2},
        {
            "target_tensor_parallel_size": 2,
            "target_pipeline_parallel_size": 2,
            "target_expert_parallel_size": 2,
        },
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "untied": make_hugging_face_model(
            folder / "untied", tied=False, vocab_size=104, layers=4, dtype=torch.bfloat16
        ),
        "tied": make_hugging_face_model(folder / "tied", tied=True, vocab_size=104, layers=4),
        "experts": make_hugging_face_model(folder / "experts", tied=False, vocab_size=104, experts={}),
    }


def assert_same_weights(expected: Path, found: Path) -> None:
    one, other = (load_file(folder / "model.safetensors") for folder in (expected, found))
    assert one.keys() == other.keys()
    assert all(value.dtype is other[name].dtype and torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("model", "layout"),
    [(model, layout) for model in ("untied", "tied") for layout in LAYOUTS]
    + [("experts", layout) for layout in EXPERTS],
)
def test_theirs_is_ours(models: dict[str, Path], tmp_path: Path, model: str, layout: str) -> None:
    theirs, ours = (EXPERTS if model == "experts" else LAYOUTS)[layout]
    source = models[model]
    write_as_mindspeed_llm(source, tmp_path / "theirs", **theirs)
    convert(ConvertConfig("mg", "hf", tmp_path / "theirs", tmp_path / "back", hf_cfg_dir=source))
    assert_same_weights(source, tmp_path / "back")
    convert(ConvertConfig("hf", "mg", source, tmp_path / "ours", **ours))
    names = [
        sorted(str(path.relative_to(tmp_path / one)) for path in (tmp_path / one).rglob("*.pt"))
        for one in ("theirs", "ours")
    ]
    assert names[0] == names[1] and (tmp_path / "ours" / megatron.TRACKER).read_text().strip() == "1"
    for name in names[0]:
        expected, found = (load_without_code(tmp_path / one / name) for one in ("theirs", "ours"))
        assert expected.keys() == found.keys()
        for key in (key for key in expected if key.startswith("model")):
            assert expected[key].keys() == found[key].keys()
            assert all(torch.equal(value, found[key][one]) for one, value in expected[key].items())


@pytest.mark.parametrize(
    ("model", "written"),
    [
        ("experts", {"experts": "one by one", "tensor": 2, "expert": 2}),
        ("experts", {"experts": "transformer engine", "expert": 2, "pipeline": 2}),
        ("tied", {"noop": (0, 5), "pipeline": 2}),
        ("untied", {"noop": (1, 2, 5, 6), "pipeline": 2, "virtual": 2, "tensor": 2}),
    ],
    ids=["experts one by one", "names of Transformer Engine", "layers that do nothing", "and chunks"],
)
def test_their_other_names(models: dict[str, Path], tmp_path: Path, model: str, written: dict[str, Any]) -> None:
    write_as_mindspeed_llm(models[model], tmp_path / "theirs", **written)
    convert(
        ConvertConfig(
            "mg", "mg", tmp_path / "theirs", tmp_path / "any", hf_cfg_dir=models[model], ckpt_format="torch_dist"
        )
    )
    convert(ConvertConfig("mg", "hf", tmp_path / "any", tmp_path / "back"))
    assert_same_weights(models[model], tmp_path / "back")


def test_a_release_of_megatron(models: dict[str, Path], tmp_path: Path) -> None:
    write_as_mindspeed_llm(models["tied"], tmp_path / "theirs")
    (tmp_path / "theirs/iter_0000001").rename(tmp_path / "theirs/release")
    (tmp_path / "theirs" / megatron.TRACKER).write_text("release\n")
    assert megatron.checkpoints(tmp_path / "theirs") == [tmp_path / "theirs/release"]
    convert(ConvertConfig("mg", "hf", tmp_path / "theirs", tmp_path / "back", hf_cfg_dir=models["tied"]))
    assert_same_weights(models["tied"], tmp_path / "back")
    shown = {one.name for one in open_weights(tmp_path / "theirs").tensors()}
    assert "model/decoder.layers.3.mlp.linear_fc2.weight" in shown


def test_ours_says_what_their_converter_asks(models: dict[str, Path], tmp_path: Path) -> None:
    convert(ConvertConfig("hf", "mg", models["experts"], tmp_path / "mg", target_expert_parallel_size=2))
    file = tmp_path / "mg/iter_0000001/mp_rank_00_001/model_optim_rng.pt"
    told = torch.load(file, weights_only=False)["args"]
    assert type(told) is argparse.Namespace
    config = json.loads((models["experts"] / "config.json").read_text(encoding="utf-8"))
    assert (told.tensor_model_parallel_size, told.pipeline_model_parallel_size, told.expert_model_parallel_size) == (
        1,
        1,
        2,
    )
    assert (told.num_layers, told.num_experts, told.kv_channels) == (
        2,
        8,
        16,
    ) and told.untie_embeddings_and_output_weights
    assert told.num_key_value_heads == config["num_key_value_heads"] and told.first_k_dense_replace == 0
    assert told.num_layer_list is None and told.num_layers_per_virtual_pipeline_stage is None
    assert not hasattr(told, "add_qkv_bias") and not hasattr(told, "multi_latent_attention")


def change(folder: Path, **values: Any) -> None:
    """Of the model in a file of theirs; None removes."""
    state = torch.load(folder / FILE, weights_only=False)
    for name, value in values.items():
        state["model"] = {key: old for key, old in state["model"].items() if key != name}
        state["model"] |= {} if value is None else {name: value}
    torch.save(state, folder / FILE)


NORM = "decoder.final_layernorm.weight"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: change(folder, **{NORM: None}), f"the last stage has no {NORM}"),
        (
            lambda folder: change(folder, **{"decoder.layers.1.x": torch.ones(1)}),
            "the tensor decoder.layers.1.x, which the arch",
        ),
        (
            lambda folder: change(folder, **{"decoder.layers.1.mlp.linear_fc2.weight": None}),
            "the tensor decoder.layers.1.mlp.linear_fc2.weight is missing from stage 0",
        ),
        (
            lambda folder: change(folder, **{"decoder.layers.1.mlp.linear_fc2.weight": torch.ones(64, 126)}),
            r"shape \(64, 126\), the architecture says \(64, 128\); is --hf-cfg-dir that of these files",
        ),
        (
            lambda folder: change(folder, **{"decoder.layers.4.x": torch.ones(1)}),
            "has 5 layers, its config.json 4; give",
        ),
        (
            lambda folder: change(folder, **{"decoder.layers.0.mlp.linear_fc1.lora_A.default.weight": torch.ones(1)}),
            "has adapters of another toolkit .*; merge them with the toolkit",
        ),
        (lambda folder: (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-1000]), "cannot be read"),
        (lambda folder: torch.save({"model": [1]}, folder / FILE), "holds no model"),
        (
            lambda folder: (folder / "iter_0000001/mp_rank_00").rename(folder / "iter_0000001/mp_rank_01"),
            "mp_rank_00/.* is missing",
        ),
        (
            lambda folder: (folder / "latest_checkpointed_iteration.txt").write_text("2"),
            "names iter_0000002, which is not there",
        ),
    ],
    ids=["no end", "extra", "missing", "shape", "layers", "adapters", "cut", "no model", "no rank", "tracker"],
)
def test_what_is_wrong_with_theirs_is_one_line(
    models: dict[str, Path], tmp_path: Path, harm: Any, message: str
) -> None:
    write_as_mindspeed_llm(models["tied"], tmp_path / "theirs")
    harm(tmp_path / "theirs")
    with pytest.raises(UserError, match=message) as raised:
        convert(ConvertConfig("mg", "hf", tmp_path / "theirs", tmp_path / "new", hf_cfg_dir=models["tied"]))
    assert "\n" not in str(raised.value) and not (tmp_path / "new").exists()


def test_what_model_it_is_must_be_said(models: dict[str, Path], tmp_path: Path) -> None:
    write_as_mindspeed_llm(models["tied"], tmp_path / "theirs")
    with pytest.raises(UserError, match="--load-dir .* does not say what model it is: .* give it --hf-cfg-dir"):
        convert(ConvertConfig("mg", "hf", tmp_path / "theirs", tmp_path / "new"))
    with pytest.raises(UserError, match="--load .* is a checkpoint of another toolkit"):
        open_source(tmp_path / "theirs")


def test_code_in_their_arguments_is_not_run(models: dict[str, Path], tmp_path: Path) -> None:
    write_as_mindspeed_llm(models["tied"], tmp_path / "theirs")
    state = torch.load(tmp_path / "theirs" / FILE, weights_only=False)
    state["args"].surprise = Surprise(tmp_path / "ran")
    torch.save(state, tmp_path / "theirs" / FILE, pickle_protocol=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor a word of torch's
        convert(ConvertConfig("mg", "hf", tmp_path / "theirs", tmp_path / "back", hf_cfg_dir=models["tied"]))
    assert not (tmp_path / "ran").exists()


class Surprise:
    """Makes a folder when it is unpickled as it wants."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, (str(self.path),)
