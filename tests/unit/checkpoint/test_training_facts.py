"""An exported folder says how its model was trained to be asked, and a generation holds to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mindspeed_ift.checkpoint.convert import _check_certificate
from mindspeed_ift.checkpoint.huggingface import Lazy, read_training, write_folder
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.inference import GenerateConfig
from mindspeed_ift.data.template_certificate import KEY, Certificate, no_certificate
from mindspeed_ift.data.template_choice import definition
from mindspeed_ift.data.template_table import TEMPLATES
from mindspeed_ift.data.tokenizer import load_tokenizer
from mindspeed_ift.inference.asking import make_asking_encoder
from tests.tiny_tokenizer import make_tiny_tokenizer

QWEN = {"prompt_type": "qwen", "template_row": None, "template_sha256": definition(TEMPLATES["qwen"])}


def test_an_exported_folder_remembers_its_template(tmp_path: Path) -> None:
    tensors = [Lazy("x", torch.float32, (1,), lambda: [torch.zeros(1)])]
    write_folder(tmp_path / "ours", tensors, {}, None, QWEN)
    write_folder(tmp_path / "others", tensors, {}, None)
    assert read_training(tmp_path / "ours") == QWEN and read_training(tmp_path / "others") == {}
    (tmp_path / "ours" / "mindspeed_ift.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="mindspeed_ift.json is damaged"):
        read_training(tmp_path / "ours")


def test_a_generation_asks_as_training_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {**QWEN, "tokenizer": str(make_tiny_tokenizer(tmp_path))}
    assert (
        make_asking_encoder(GenerateConfig(load=tmp_path), facts).template.name == "qwen"
        and not capsys.readouterr().out
    )
    assert make_asking_encoder(GenerateConfig(load=tmp_path, prompt_type="qwen3"), facts).template.name == "qwen3"
    assert "asked with --prompt-type qwen3, but the model was trained with qwen" in capsys.readouterr().out
    with pytest.raises(UserError, match="made with another definition of --prompt-type qwen"):
        make_asking_encoder(GenerateConfig(load=tmp_path), {**facts, "template_sha256": "0" * 64})
    other = Certificate("qwen", "0" * 64, "none", "", "", {}, 1, 1, 1, {}, {})
    with pytest.raises(UserError, match="not about its template"):
        make_asking_encoder(GenerateConfig(load=tmp_path), {**facts, KEY: other.as_dict()})
    sha, mine = QWEN["template_sha256"], load_tokenizer(tmp_path).fingerprint
    facts[KEY] = replace(other, template_sha256=sha, tokenizer_sha256=mine).as_dict()
    assert make_asking_encoder(GenerateConfig(load=tmp_path), facts).template.name == "qwen"
    facts[KEY] = replace(other, template_sha256=sha).as_dict()
    with pytest.raises(UserError, match="is another one than that of --load"):
        make_asking_encoder(GenerateConfig(load=tmp_path), facts)


def test_an_export_is_held_to_the_certificate(tmp_path: Path) -> None:
    """To its template, and to its tokenizer where one is exported."""
    tokenizer = make_tiny_tokenizer(tmp_path / "tokenizer")
    right = no_certificate("x", load_tokenizer(tokenizer))
    _check_certificate({**QWEN, KEY: right}, tokenizer, tmp_path)
    _check_certificate(QWEN, tokenizer, tmp_path)
    (tmp_path / "none").mkdir()
    other = Certificate("qwen", QWEN["template_sha256"], "none", "", "", {}, 1, 1, 1, {}, {}).as_dict()
    for folder in (None, tmp_path / "none"):
        _check_certificate({**QWEN, KEY: other}, folder, tmp_path)
    with pytest.raises(UserError, match="tokenizer is another one than that of"):
        _check_certificate({**QWEN, KEY: other}, tokenizer, tmp_path)
    with pytest.raises(UserError, match="not about its template"):
        _check_certificate({**QWEN, KEY: {**other, "equal": 0}}, None, tmp_path)
