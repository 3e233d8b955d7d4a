"""The benchmark of a training step runs at both of its sizes and reports what it says; how fast is nobody's test."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.resolve import resolve_architecture
from mindspeed_ift.config.tuning import ModelFlags
from tests.tiny_tokenizer import make_tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["data", "attention forward", "mlp forward", "head and loss", "rest of forward", "backward", "optimizer"]
TINY = "--hidden-size 32 --ffn-hidden-size 64 --num-attention-heads 4 --num-query-groups 2 --kv-channels 8".split()


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Its module; it finds its neighbours as a script does."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import train_step

    return train_step


def test_without_an_accelerator(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer, output = make_tiny_tokenizer(tmp_path / "tokenizer"), tmp_path / "figures.json"
    words = ["--tokenizer", str(tokenizer), "--seq-length", "1024", "--rounds", "1", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["train_step.py", *words, "--output", str(output)])
    benchmark.main()
    figures = json.loads(output.read_text(encoding="utf-8"))
    assert "a small size, for want of an accelerator" in capfd.readouterr().out
    assert figures["device"] == "cpu" and figures["versions"]["torch"] == torch.__version__ and figures["date"]
    by_name = {one["name"]: one for one in figures["contenders"]}
    ours, plain, padded, packed = (
        by_name[name] for name in ("ours, one by one", "transformers, one by one", "ours, padded", "ours, packed")
    )
    counts = ("real_tokens", "learnt_tokens", "squared_lengths", "operations")
    assert [ours[name] for name in counts] == [plain[name] for name in counts] == [padded[name] for name in counts]
    assert padded["tokens"] == 2 * 8 * 1024 > ours["tokens"] > ours["real_tokens"] and padded["mfu"] is None
    assert packed["real_tokens"] > 0.8 * packed["tokens"]
    for one in by_name.values():
        assert [*one["parts"]] == [*PARTS, "rest of step", "whole step"] and len(one["wall"]) == 2
        assert all(value > 0 for name, value in one["parts"].items() if not name.startswith("rest")), one
        assert sum(one["parts"].values()) == pytest.approx(2 * one["parts"]["whole step"], abs=0.1)
    for ratio, (above, below) in (
        ("one by one: transformers / ours", (plain, ours)),
        ("ours: padded / packed", (padded, packed)),
    ):
        expected = above["cpu_us_per_real_token"] / below["cpu_us_per_real_token"]
        assert figures["ratios"][ratio]["cpu"] == pytest.approx(expected)


def test_the_large_size_is_a_part_of_the_8b(benchmark: ModuleType) -> None:
    flags = parse(ModelFlags, [*benchmark.LARGE, "--num-layers", "4"], program="test")
    found, _ = resolve_architecture(flags, {}, tokenizer_vocab=1)
    assert found == replace(Architecture.from_preset("qwen3-8b"), num_layers=4)


def test_the_large_size_on_a_small_model(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Packed, in bf16, recomputed: transformers and we take the same samples; who runs out of memory is left out."""
    monkeypatch.setattr(benchmark, "LARGE", TINY)
    chosen = argparse.Namespace(tokenizer=str(make_tiny_tokenizer(tmp_path / "tokenizer")), seq_length=256)
    chosen.__dict__.update(layers=2, rows=2, rounds=1, steps=1, recompute=True)
    taken = []
    take = benchmark.Transformers.step

    def runs_out(self: object, batches: list) -> float:
        taken.append(batches)
        if len(taken) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return take(self, batches)

    monkeypatch.setattr(benchmark.Transformers, "step", runs_out)
    ours, plain = benchmark.large(chosen, tmp_path)
    benchmark.leave_world()
    assert len(taken[0]) == 2 and taken[0][0].boundaries is not None and len(taken[0][0].boundaries) > 2
    assert ours.operations > 0 and ours.parts["backward"] > ours.parts["attention forward"] > 0
    assert not ours.failure and plain.failure.startswith("out of memory: CUDA") and not plain.wall
