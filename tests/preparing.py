"""Records as a file, and what becomes of them in preparation; fixtures of all tests of data (see their conftest.py)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.data.indexed import IndexedColumn, column_path
from mindspeed_ift.data.preprocess import Summary, preprocess
from mindspeed_ift.data.tokenizer import Tokenizer, load_tokenizer
from tests.tiny_tokenizer import make_tiny_tokenizer

RECORDS = [
    {"instruction": f"question {number}", "input": "", "output": "answer " * (number % 7 + 1)} for number in range(40)
]
GOOD = {"instruction": "q", "output": "a"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny tokenizer, for all tests of a module."""
    return make_tiny_tokenizer(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def words(tokenizer: Path) -> Tokenizer:
    """It loaded."""
    return load_tokenizer(tokenizer)


@pytest.fixture
def config(tmp_path: Path, tokenizer: Path) -> PreprocessConfig:
    """Preparation of `RECORDS`."""
    return PreprocessConfig(
        input=str(write(tmp_path / "in.jsonl", RECORDS)),
        output_prefix=str(tmp_path / "out" / "data"),
        tokenizer_name_or_path=str(tokenizer),
        prompt_type="qwen3",
    )


def write(file: Path, records: list[dict[str, Any]]) -> Path:
    """Write records as jsonl."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def run(config: PreprocessConfig) -> Summary:
    """Prepare without a word."""
    return preprocess(config, report=lambda line: None)


def prepared(config: PreprocessConfig, records: list[dict[str, Any]], **flags: Any) -> Summary:
    """Prepare these records under ``--prompt-type qwen``, however many of them are malformed."""
    write(Path(config.input), records)
    return run(replace(config, prompt_type="qwen", max_drop_fraction=1.0, **flags))


def contents(config: PreprocessConfig) -> dict[str, bytes]:
    """The files of the dataset itself."""
    folder = Path(config.output_prefix).parent
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".bin", ".idx")}


def column(config: PreprocessConfig, name: str) -> IndexedColumn:
    """A column of the dataset."""
    return IndexedColumn(column_path(config.output_prefix, name))


def lines(*records: Any) -> bytes:
    """As jsonl."""
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def kept_and_dropped(
    content: bytes, name: str, tokenizer: Path, folder: Path, **options: Any
) -> tuple[int, dict[str, int]]:
    """Prepare a file of that content: samples, and dropped records by reason."""
    (folder / name).write_bytes(content)
    config = PreprocessConfig(
        input=str(folder / name),
        output_prefix=str(folder / "out" / "data"),
        tokenizer_name_or_path=str(tokenizer),
        **{"prompt_type": "qwen3", **options},
    )
    ledger = preprocess(config, report=lambda line: None).ledger
    return ledger.kept, {reason: tally.count for reason, tally in ledger.dropped.items()}
