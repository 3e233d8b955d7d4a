"""Ten records, prepared as a test wants them, and a model to plan a training on them with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mindspeed_ift.cli.preprocess import main as preprocess
from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.tuning import TuneConfig
from mindspeed_ift.training.plan import Plan, plan
from tests.tiny_tokenizer import make_tiny_tokenizer

MODEL = "--num-layers 2 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4 --num-query-groups 2".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and ten records of 6 to 60 words."""
    folder = tmp_path_factory.mktemp("plan")
    make_tiny_tokenizer(folder / "tokenizer")
    records = [{"instruction": "the " * 6 * n, "output": f"answer {n}"} for n in range(1, 11)]
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return folder


def prepare(data: Path, name: str, *flags: str, manifest: bool = True) -> str:
    """A dataset of that name, as MindSpeed-LLM's without a manifest; returns its prefix."""
    preprocess(
        ["--input", str(data / "records.jsonl"), "--tokenizer-name-or-path", str(data / "tokenizer")]
        + ["--handler-name", "AlpacaStyleInstructionHandler", "--output-prefix", str(data / name), *flags]
    )
    if not manifest:
        (data / f"{name}.manifest.json").unlink()
    return str(data / name)


def planned(prefix: str, *flags: str, world: int = 1) -> Plan:
    """The plan of four steps on a dataset."""
    line = [*MODEL, "--train-iters", "4", "--data-path", prefix, *flags]
    return plan(parse(TuneConfig, line, program="test"), world)
