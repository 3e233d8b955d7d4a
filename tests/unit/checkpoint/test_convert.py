"""A conversion in several threads: the same bytes as in one, and nothing where something is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.convert import convert
from mindspeed_ift.checkpoint.source import Checkpoint
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.config.errors import UserError
from tests.training_runs import make_hugging_face_model


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("experts", [None, {}], ids=["dense", "experts"])
def test_workers_do_not_change_a_byte(tmp_path: Path, experts: dict[str, Any] | None) -> None:
    cut: dict[str, Any] = {"target_tensor_parallel_size": 2, "target_pipeline_parallel_size": 2}
    if experts is not None:
        cut["target_expert_parallel_size"] = 2
    source = make_hugging_face_model(tmp_path / "hf", tied=False, vocab_size=250, experts=experts)
    written = {}
    for workers in (1, 3):
        made = tmp_path / str(workers)
        convert(ConvertConfig("hf", "mg", source, made / "cut", **cut, workers=workers))
        convert(ConvertConfig("mg", "mg", made / "cut", made / "any", ckpt_format="torch_dist", workers=workers))
        convert(ConvertConfig("mg", "mg", made / "any", made / "one", workers=workers))
        convert(ConvertConfig("mg", "hf", made / "cut", made / "back", workers=workers))
        for name in ("cut", "any", "one"):
            folder = made / name / "iter_0000001"
            files = (megatron.read_manifest(folder) or {})["files"]
            assert files and megatron.damage(folder) is None and megatron.changed(folder, files) is None
        written[workers] = content(made)
    assert written[1] == written[3]
    expected, back = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "1/back"))
    assert back.keys() == expected.keys() and all(torch.equal(back[name], value) for name, value in expected.items())


def test_experts_are_read_once_though_their_tensors_take_turns_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_hugging_face_model(tmp_path / "hf", tied=False, vocab_size=250, experts={})
    convert(ConvertConfig("hf", "mg", source, tmp_path / "mg"))
    read: list[str] = []
    original = Checkpoint._read
    monkeypatch.setattr(Checkpoint, "_read", lambda self, group: read.append(group.parts[0]) or original(self, group))
    convert(ConvertConfig("mg", "hf", tmp_path / "mg", tmp_path / "back"))
    assert len(read) == len(set(read)) and sum("experts" in name for name in read) == 4  # two a layer


@pytest.mark.parametrize("ckpt_format", ["torch", "torch_dist"])
@pytest.mark.parametrize("target", ["hf", "mg"])
def test_a_byte_that_changed_is_found_before_anything_appears(tmp_path: Path, ckpt_format: Any, target: Any) -> None:
    source = make_hugging_face_model(tmp_path / "hf", tied=True, vocab_size=250)
    convert(ConvertConfig("hf", "mg", source, tmp_path / "mg", ckpt_format=ckpt_format))
    file = max(
        (tmp_path / "mg").rglob("*.pt" if ckpt_format == "torch" else "*.distcp"), key=lambda one: one.stat().st_size
    )
    middle = file.stat().st_size // 2
    file.write_bytes(file.read_bytes()[:middle] + b"\x55" + file.read_bytes()[middle + 1 :])
    with pytest.raises(UserError, match=f"{file.name} is not what was written .*checksum"):
        convert(ConvertConfig("mg", target, tmp_path / "mg", tmp_path / "new"))
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*"))
    file.unlink()
    with pytest.raises(UserError, match=f"{file.name} is missing"):
        convert(ConvertConfig("mg", target, tmp_path / "mg", tmp_path / "new"))
