"""The command plan: its table, its verdict as exit code, JSON, one line for bad input."""

from __future__ import annotations

import json

import pytest

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.plan import main

LINE = ["--preset", "qwen3-8b", "--bf16", "--tensor-model-parallel-size", "8", "--sequence-parallel"]
LINE += ["--use-distributed-optimizer", "--global-batch-size", "16", "--train-iters", "2000"]


def test_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINE, "--device-name", "Ascend910B3", "--save", "nowhere", "--use-flash-attn"]) == 0
    said = capsys.readouterr().out
    assert "model: 8.19 billion parameters (from --preset qwen3-8b)" in said
    assert "layout: 8 devices = tensor 8 x pipeline 1 x context 1 x data 1; 16 micro-batches of 1 a step" in said
    # 8.19e9 / 8, and the norms that every device has: 2, 4 and 12 bytes.
    assert "│ weights     │            1.91 │" in said and "│ optimizer   │           11.45 │" in said
    assert "fits: " in said and "at MFU 40 %" in said and said.count("s a step: --tensor") == 5


def test_what_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINE, "--preset", "qwen3-32b"]) == 1
    said = capsys.readouterr().out
    assert "does not fit: " in said and "give --device-name or --peak-tflops" in said
    assert "no layout of 8 devices fits" in said and "least memory: " in said
    assert main([*LINE, "--preset", "qwen3-32b", "--num-devices", "16", "--pipeline-model-parallel-size", "2"]) == 0
    said = capsys.readouterr().out
    assert "pipeline rank 0" in said and "pipeline rank 1" in said and "x the time: --tensor" in said


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINE, "--peak-tflops", "300", "--json", "--best", "1"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["parameters"] == plan["active_parameters"] == 8_190_735_360 and plan["fits"] is True
    (rank,) = plan["memory_by_pipeline_rank"]
    assert rank["total"] == sum(
        rank[part] for part in ("weights", "gradients", "optimizer", "activations", "temporary")
    )
    expected = plan["operations_of_a_step"] / (300e12 * 0.4 * 8)
    assert plan["seconds_of_a_step"] == pytest.approx(expected) and len(plan["best"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mfu", "40"], "--mfu 40.0 must be over 0 and at most 1"),
        (["--num-devices", "0"], "--num-devices 0 must be at least 1"),
        (["--num-devices", "12"], "12 processes do not divide by TP 8"),
        (["--device-memory-gib", "0"], "--device-memory-gib 0.0 must be over 0"),
        (["--sample-length", "9999"], "--sample-length 9999 is more than --seq-length 4096"),
        (["--best", "-1"], "--best -1 must not be negative"),
        (["--data-path", "none"], "no such dataset file"),
        (["--preset", "qwen3-9b"], "--preset qwen3-9b is unknown"),
    ],
)
def test_one_line_and_exit_code_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(main, [*LINE, *words])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and message in said and said.count("\n") == 1
