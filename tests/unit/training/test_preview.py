"""What a dry run says, with data and weights and without."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.tuning import TuneConfig
from mindspeed_ift.training.plan import plan
from mindspeed_ift.training.preview import preview
from tests.planned import MODEL, planned, prepare


def test_a_preview_needs_neither_data_nor_weights(data: Path) -> None:
    line = [
        "--preset",
        "qwen3-8b",
        "--tensor-model-parallel-size",
        "8",
        "--data-path",
        "nowhere/x",
        "--load",
        "nowhere",
    ]
    config = parse(TuneConfig, [*line, "--train-iters", "4", "--enable-hf2mg-convert"], program="test")
    text = preview(config, 8)
    assert "--data-path nowhere/x is not here" in text and "--load nowhere is not here" in text
    assert "num_layers 36" in text and "tensor 8" in text
    with pytest.raises(UserError, match="do not divide by TP 8"):
        preview(config, 6)


def test_a_preview_of_what_is_there_is_the_plan(data: Path) -> None:
    prefix = prepare(data, "preview")
    config = planned(prefix).config
    assert preview(config, 1) == plan(config, 1).describe()
    with pytest.raises(UserError, match="no training sample"):
        preview(dataclasses.replace(config, data=dataclasses.replace(config.data, split="0,1,0")), 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--preset qwen3-8b --num-layers 3", "num_layers is 36 by --preset qwen3-8b, 3 by the flags"),
        ("--num-layers 3", "the missing --hidden-size"),
        (" ".join(MODEL) + " --kv-channels 7", "kv_channels 7 must be even"),
        (" ".join(MODEL) + " --num-attention-heads 3", "does not divide"),
    ],
)
def test_a_preview_refuses_a_model_that_cannot_be_without_data_too(flags: str, message: str) -> None:
    line = f"--data-path nowhere/x --train-iters 4 {flags}"
    with pytest.raises(UserError, match=message):
        preview(parse(TuneConfig, line.split(), program="test"), 1)


def test_a_preview_without_data_shows_a_model_that_is_spelled_out() -> None:
    line = ["--data-path", "nowhere/x", "--train-iters", "4", *MODEL]
    text = preview(parse(TuneConfig, line, program="test"), 1)
    assert "the vocabulary is the tokenizer's" in text
    text = preview(parse(TuneConfig, [*line, "--padded-vocab-size", "512"], program="test"), 1)
    assert "architecture (from flags): num_layers 2" in text and "vocab_size 512" in text
