"""Weights on disk: shown whatever their kind, and every kind of damage named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mindspeed_ift.checkpoint.convert import convert
from mindspeed_ift.cli.show_checkpoint import main as show
from mindspeed_ift.cli.verify_checkpoint import main as verify
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.config.errors import UserError
from tests.training_runs import make_hugging_face_model

Told = Callable[[], str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder and a checkpoint made of it."""
    folder = tmp_path_factory.mktemp("weights")
    make_hugging_face_model(folder / "hf", tied=False, vocab_size=50)
    convert(ConvertConfig("hf", "mg", folder / "hf", folder / "mg", target_tensor_parallel_size=2))
    return folder


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    return lambda: " ".join(capsys.readouterr().out.split())


def _copy(source: Path, target: Path) -> Path:
    for path in source.rglob("*"):
        if path.is_file():
            copied = target / path.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_bytes(path.read_bytes())
    return target


def test_whole_folders_are_whole(made: Path, told: Told) -> None:
    assert verify([str(made / "hf")]) == 0 and "25 tensors" in told()
    assert verify([str(made / "mg")]) == 0 and "2 files" in told()


def test_what_is_there_is_shown(made: Path, told: Told) -> None:
    assert show([str(made / "hf")]) == 0
    text = told()
    assert "(Hugging Face)" in text and "model.layers.1.mlp.up_proj.weight" in text and "128 x 64" in text
    assert show([str(made / "mg")]) == 0
    text = told()
    assert "tensor 2" in text and "model/decoder.layers.0.mlp.linear_fc1.weight" in text and "mp_rank_01" in text


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "bytes, not the"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "its checksum differs"),
    ],
    ids=["shorter", "gone", "changed"],
)
def test_a_damaged_file_of_a_checkpoint(
    tmp_path: Path, made: Path, told: Told, harm: Callable[[Path], None], expected: str
) -> None:
    folder = _copy(made / "mg", tmp_path / "mg")
    harm(folder / "iter_0000001/mp_rank_01/model_optim_rng.pt")
    assert verify([str(folder)]) == 1
    text = told()
    assert expected in text and "mp_rank_01/model_optim_rng.pt" in text and "mp_rank_00/model_optim_rng.pt" not in text


def test_older_checkpoints_are_looked_at_too(tmp_path: Path, made: Path, told: Told) -> None:
    folder = _copy(made / "mg", tmp_path / "mg")
    _copy(folder / "iter_0000001", folder / "iter_0000004")
    (folder / "latest_checkpointed_iteration.txt").write_text("4", encoding="utf-8")
    (folder / "iter_0000001/mp_rank_00/model_optim_rng.pt").unlink()
    assert verify([str(folder)]) == 1
    assert "iter_0000004 (torch): files and checksums" in (text := told()) and "iter_0000001/mp_rank_00" in text


def test_wrong_tensors_of_a_hugging_face_folder(tmp_path: Path, made: Path, told: Told) -> None:
    folder = _copy(made / "hf", tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(3)
    tensors["extra"] = torch.zeros(1)
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert verify([str(folder)]) == 1
    text = told()
    assert "lm_head.weight is missing" in text and "extra is unexpected" in text
    assert "model.norm.weight has shape (3,), config.json says (64,)" in text
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    assert verify([str(folder)]) == 1 and "cannot be read" in told()


def test_a_missing_shard_and_a_damaged_manifest(tmp_path: Path, made: Path, told: Told) -> None:
    folder = _copy(made / "hf", tmp_path / "hf")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "gone.safetensors"}}), encoding="utf-8"
    )
    assert verify([str(folder)]) == 1 and "gone.safetensors" in told()
    folder = _copy(made / "mg", tmp_path / "mg")
    (folder / "iter_0000001/manifest.json").write_text("{", encoding="utf-8")
    assert verify([str(folder)]) == 1 and "manifest.json is damaged" in told()


def test_code_in_a_checkpoint_of_others_does_not_run(tmp_path: Path, told: Told) -> None:
    class Harm:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "harmed",))

    folder = tmp_path / "iter_0000001/mp_rank_00"
    folder.mkdir(parents=True)
    torch.save({"model": Harm()}, folder / "model_optim_rng.pt")
    assert verify([str(folder.parent)]) == 1 and "cannot be read without running code" in told()
    assert not (tmp_path / "harmed").exists()


def test_other_folders_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        for command in (show, verify):
            with pytest.raises(UserError, match=str(folder)):
                command([str(folder)])
