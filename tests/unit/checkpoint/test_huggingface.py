"""Hugging Face folders: read tensor by tensor, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mindspeed_ift.checkpoint.huggingface import Folder, Lazy, write_folder
from mindspeed_ift.config.errors import RunError, UserError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5), "c": torch.zeros(4, 4)}


def lazy() -> list[Lazy]:
    return [Lazy(name, value.dtype, tuple(value.shape), lambda one=value: [one]) for name, value in TENSORS.items()]


def test_one_file(tmp_path: Path) -> None:
    write_folder(tmp_path / "hf", lazy(), {"model_type": "qwen3", "eos_token_id": 7}, None)
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    folder = Folder(tmp_path / "hf")
    assert folder.names == set(TENSORS) and folder.files == ["model.safetensors"]
    assert all(torch.equal(folder.tensor(name, tuple(value.shape)), value) for name, value in TENSORS.items())
    generation = json.loads((tmp_path / "hf/generation_config.json").read_text(encoding="utf-8"))
    assert generation == {"do_sample": False, "eos_token_id": 7}


def test_several_files_and_their_index(tmp_path: Path) -> None:
    write_folder(tmp_path / "hf", lazy(), {}, None, max_shard_bytes=50)
    index = json.loads((tmp_path / "hf/model.safetensors.index.json").read_text(encoding="utf-8"))
    names = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    assert index == {
        "metadata": {"total_size": 24 + 20 + 64},
        "weight_map": {"a": names[0], "b": names[0], "c": names[1]},
    }
    assert set(load_file(tmp_path / "hf" / names[0])) == {"a", "b"}
    folder = Folder(tmp_path / "hf")
    assert all(torch.equal(folder.tensor(name, tuple(value.shape)), value) for name, value in TENSORS.items())


def test_tensors_of_several_types_lie_where_the_library_expects_them(tmp_path: Path) -> None:
    mixed = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.arange(5.0), "c": torch.tensor(2.0).half()}
    tensors = [Lazy(name, value.dtype, tuple(value.shape), lambda one=value: [one]) for name, value in mixed.items()]
    write_folder(tmp_path / "hf", tensors, {}, None)
    found, folder = load_file(tmp_path / "hf/model.safetensors"), Folder(tmp_path / "hf")
    for name, value in mixed.items():
        assert torch.equal(found[name], value) and folder.dtype(name) is found[name].dtype is value.dtype


def test_tokenizer_files_come_along(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in ("tokenizer.json", "vocab.json", "chat_template.jinja", "model.safetensors", "README.md"):
        (tmp_path / "source" / name).write_text(name)
    write_folder(tmp_path / "hf", lazy(), {}, tmp_path / "source")
    copied = {path.name for path in (tmp_path / "hf").iterdir()} - {"config.json", "generation_config.json"}
    assert copied == {"tokenizer.json", "vocab.json", "chat_template.jinja", "model.safetensors"}
    assert set(load_file(tmp_path / "hf/model.safetensors")) == set(TENSORS)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def failing(error: Exception) -> list[Lazy]:
        def read() -> list[torch.Tensor]:
            raise error

        return [*lazy(), Lazy("d", torch.float32, (1,), read)]

    with pytest.raises(UserError, match="of the source"):
        write_folder(tmp_path / "hf", failing(UserError("of the source")), {}, None)
    with pytest.raises(
        RunError, match=r"cannot write .*hf .No space left.; free some space, or give another --save-dir"
    ):
        write_folder(tmp_path / "hf", failing(OSError(28, "No space left")), {}, None)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_content_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "hf", tmp_path / "file"):
        with pytest.raises(UserError, match=f"--save-dir {path} exists and is not empty"):
            write_folder(path, lazy(), {}, None)
    assert [path.name for path in (tmp_path / "hf").iterdir()] == ["mine"]


def test_what_is_wrong_with_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model.safetensors and no model.safetensors.index.json"):
        Folder(tmp_path)
    save_file({"a": TENSORS["a"]}, tmp_path / "model.safetensors")
    folder = Folder(tmp_path)
    with pytest.raises(UserError, match="the tensor b is missing; is the folder complete"):
        folder.tensor("b", (5,))
    with pytest.raises(UserError, match=r"model.safetensors: a has shape .2, 3., config.json says .3, 2."):
        folder.tensor("a", (3, 2))
    (tmp_path / "model.safetensors").write_bytes(b"0" * 20)
    with pytest.raises(UserError, match="model.safetensors cannot be read .*; copy it again"):
        Folder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with pytest.raises(UserError, match="gone.safetensors cannot be read"):
        Folder(tmp_path).tensor("a", (2, 3))
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="index.json is damaged; copy the folder again"):
        Folder(tmp_path)
