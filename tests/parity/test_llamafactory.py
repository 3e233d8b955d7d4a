"""Our samples are those of the real LLaMA-Factory, token for token and label for label."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from mindspeed_ift.data.conversation import DropRecord
from mindspeed_ift.data.encode import EncodeOptions, Encoder
from mindspeed_ift.data.formats import AlpacaFormat, OpenAIFormat, SharegptFormat
from mindspeed_ift.data.sample import Sample
from mindspeed_ift.data.template_table import TEMPLATES
from mindspeed_ift.data.tokenizer import Tokenizer, load_tokenizer
from tests.shared_paths import SHARED, needs_shared

pytestmark = needs_shared

FORMATS = {
    "alpaca": AlpacaFormat(history="history", system="system", tools="tools"),
    "sharegpt": SharegptFormat(system="system", tools="tools"),
    "openai": OpenAIFormat(system="system", tools="tools"),
}
FILES = {
    "qwen": ("qwen.lf0.8.2.jsonl", 189),
    "qwen_lf": ("qwen_lf.lf0.9.5.jsonl", 240),
    "qwen3": ("qwen3.lf0.9.5.jsonl", 363),
    "qwen3_nothink": ("qwen3_nothink.lf0.9.5.jsonl", 87),
    "default": ("default.lf0.8.2.jsonl", 51),
    "empty": ("empty.lf0.8.2.jsonl", 51),
    "alpaca": ("alpaca.lf0.8.2.jsonl", 51),
    "chatml": ("chatml.lf0.8.2.jsonl", 51),
    "llama3": ("llama3.lf0.8.2.jsonl", 51),
    "mistral": ("mistral.lf0.8.2.jsonl", 51),
}
THINKING = {True: "true", False: "false", None: "none"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(SHARED / "tokenizer" / "qwen3")


@pytest.fixture(scope="module")
def sources() -> dict[str, dict[str, Any]]:
    cases = json.loads((SHARED / "golden" / "llamafactory" / "cases.json").read_text(encoding="utf-8"))
    return {case["id"]: case for case in cases}


def encode(encoder: Encoder, case: dict[str, Any]) -> Sample | DropRecord:
    try:
        result = encoder.encode([FORMATS[case["format"]].convert(case["source"])])[0]
    except DropRecord as reason:
        return reason
    return result if isinstance(result, DropRecord) else result.sample


def test_every_file_is_compared() -> None:
    there = {path.name for path in (SHARED / "golden" / "llamafactory").glob("*.jsonl")}
    assert there == {name for name, _ in FILES.values()}


@pytest.mark.parametrize("prompt_type", FILES)
def test_every_case_and_option(prompt_type: str, tokenizer: Tokenizer, sources: dict[str, dict[str, Any]]) -> None:
    name, expected_count = FILES[prompt_type]
    seen: Counter[str] = Counter()
    encoders: dict[EncodeOptions, Encoder] = {}
    for line in (SHARED / "golden" / "llamafactory" / name).read_text(encoding="utf-8").splitlines():
        golden = json.loads(line)
        options = dict(golden["options"])
        chosen = EncodeOptions(
            enable_thinking=THINKING[options.pop("enable_thinking", None)],
            cutoff=options.pop("cutoff_len", None),
            **options,
        )
        if chosen not in encoders:
            encoders[chosen] = Encoder(TEMPLATES[prompt_type], tokenizer, chosen)
        ours = encode(encoders[chosen], sources[golden["case"]])
        where = f"{golden['case']} {golden['options']}"
        seen["cases"] += 1
        if golden["input_ids"] is None:
            assert isinstance(ours, DropRecord), f"{where}: LLaMA-Factory drops it"
            continue
        assert isinstance(ours, Sample), f"{where}: dropped because {ours}"
        assert tokenizer.decode(ours.input_ids) == tokenizer.decode(golden["input_ids"]), where
        assert ours.input_ids.tolist() == golden["input_ids"], where
        assert ours.labels.tolist() == golden["labels"], where
    assert seen["cases"] == expected_count
