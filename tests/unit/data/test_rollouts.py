"""Prompts for reinforcement learning: what is asked, and texts beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.encode import CUT_NOTE
from mindspeed_ift.data.tokenizer import Tokenizer
from mindspeed_ift.verify.dataset import verify_dataset
from tests.preparing import column, contents, prepared

ASKED = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    "y<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
)
ALPACA = [
    {"instruction": "q", "output": "the answer", "history": [["x", "y"]], "topic": "one two"},
    {"instruction": "q", "output": "", "history": [["x", "y"]], "topic": ""},
    {"instruction": "q", "output": "a", "history": [["x", "y"]], "topic": None},
    {"instruction": "q", "output": None, "topic": "one"},
]
SHAREGPT = [
    {
        "topic": one["topic"],
        "conversations": [
            {"from": "human", "value": "x"},
            {"from": "gpt", "value": "y"},
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": one["output"]},
        ],
    }
    for one in ALPACA
]


@pytest.mark.parametrize(
    ("handler", "records", "reason"),
    [
        ("R1AlpacaStyleInstructionHandler", ALPACA, "'output' is missing or null"),
        ("R1SharegptStyleInstructionHandler", SHAREGPT, "a message has no text"),
        ("PPOAlpacaStyleInstructionHandler", ALPACA, "'output' is missing or null"),
    ],
)
def test_prompts_for_reinforcement_learning(
    handler: str, records: list[dict[str, Any]], reason: str, config: PreprocessConfig, words: Tokenizer
) -> None:
    keeps = "R1" in handler
    map_keys = '{"history": "history"}' if "Alpaca" in handler else ""
    flags = {"handler_name": handler, "map_keys": map_keys, "append_eod": True}
    summary = prepared(config, records, **flags, dataset_additional_keys=("labels", "topic"))
    prompt, kept = words.encode(ASKED), 2 if keeps else 3
    expected = {"input_ids": [prompt] * kept, "attention_mask": [[1] * len(prompt)] * kept}
    dropped = {reason: 1}
    if keeps:
        expected |= {"labels": [words.encode("the answer"), []], "topic": [words.encode("one two"), []]}
        dropped["'topic' is missing or null"] = 1
    assert summary.manifest["columns"] == list(expected)
    assert {name: [row.tolist() for row in rows(config, name)] for name in expected} == expected
    assert {name: tally.count for name, tally in summary.ledger.dropped.items()} == dropped
    assert (summary.manifest["tokens"], summary.manifest["learnt_tokens"]) == (kept * len(prompt), 0)
    said = [line.split()[0] for line in summary.notices if "changes nothing" in line]
    assert said == ["--append-eod", *([] if keeps else ["--dataset-additional-keys"])]
    assert verify_dataset(config.output_prefix).problems == []
    with pytest.raises(UserError, match="holds prompts for reinforcement learning, of which nothing is learnt"):
        InstructionDataset(config.output_prefix)


def test_prompts_are_the_same_for_any_number_of_workers(config: PreprocessConfig) -> None:
    rollout = {"handler_name": "R1AlpacaStyleInstructionHandler", "dataset_additional_keys": ("labels",)}
    prepared(config, ALPACA[:2] * 600, **rollout)
    before = contents(config)
    prepared(config, ALPACA[:2] * 600, **rollout, workers=2)
    assert contents(config) == before


def rows(config: PreprocessConfig, name: str) -> list[np.ndarray]:
    found = column(config, name)
    return [found[row] for row in range(len(found))]


def test_prompts_that_are_too_long(config: PreprocessConfig, words: Tokenizer) -> None:
    records = [{"instruction": "one " * count, "output": "two"} for count in (1, 60)]
    rollout = {"handler_name": "R1AlpacaStyleInstructionHandler", "dataset_additional_keys": ("labels",)}
    prepared(config, records, **rollout)
    length = len(column(config, "input_ids")[0]) + 8
    summary = prepared(config, records, **rollout, seq_length=length)
    assert len(column(config, "input_ids")[1]) == length - 1 and summary.ledger.noted[CUT_NOTE].count == 1
    summary = prepared(config, records, **rollout, seq_length=length, overlong="drop")
    assert summary.ledger.kept == 1
    with pytest.raises(UserError, match="in.jsonl:2: .* tokens, more than the"):
        prepared(config, records, **rollout, seq_length=length, overlong="error")
    with pytest.raises(UserError, match="--overlong split does not go with prompts for reinforcement learning"):
        prepared(config, records, **rollout, seq_length=length, overlong="split")
    with pytest.raises(UserError, match="these records are prompts for reinforcement learning: leave --pack out"):
        prepared(config, records, **rollout, seq_length=length, pack=True)
    with pytest.raises(UserError, match="--dataset-additional-keys input_ids: a column of the dataset is called so"):
        prepared(config, records, handler_name=rollout["handler_name"], dataset_additional_keys=("input_ids",))
    long = [{"instruction": "q", "output": "two " * 60}]
    with pytest.raises(UserError, match=f"no sample is left .* {length} tokens or more"):
        prepared(config, long, **rollout, seq_length=length)
