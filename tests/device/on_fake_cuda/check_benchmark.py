"""The benchmark of a training step takes its large size on the device, through transformers too, and ends in a report."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.device.fake_cuda.module import NAME
from tests.device.fake_cuda.plugin import DEVICE
from tests.tiny_tokenizer import make_tiny_tokenizer

ROOT = Path(__file__).resolve().parents[3]
SMALL = "--hidden-size 32 --ffn-hidden-size 64 --num-attention-heads 4 --num-query-groups 2 --kv-channels 8".split()


def check_the_large_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import train_step

    monkeypatch.setattr(train_step, "LARGE", SMALL)
    tokenizer, output = make_tiny_tokenizer(tmp_path / "tokenizer"), tmp_path / "figures.json"
    words = ["--tokenizer", str(tokenizer), "--seq-length", "256", "--rounds", "1", "--steps", "1", "--layers", "1"]
    monkeypatch.setattr(sys, "argv", ["train_step.py", *words, "--rows", "1", "--output", str(output)])
    with DEVICE:
        train_step.main()
    figures = json.loads(output.read_text(encoding="utf-8"))
    assert (figures["device"], figures["device_name"]) == (
        "cuda",
        NAME,
    ) and "layers of Qwen3-8B" in capfd.readouterr().out
    assert [one["name"] for one in figures["contenders"]] == ["ours, packed", "transformers, packed"]
    for one in figures["contenders"]:
        assert not one["failure"] and one["mfu"] > 0 and one["parts"]["optimizer"] > 0
