"""What the pipeline writes of pairs, of plain text, of messages that say what is learnt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.indexed import IndexedColumn, column_path
from mindspeed_ift.data.preprocess import preprocess
from mindspeed_ift.data.sample import IGNORED_LABEL
from mindspeed_ift.data.tokenizer import load_tokenizer
from tests.preparing import column, contents, prepared, run, write


def test_preference_pairs(config: PreprocessConfig, tmp_path: Path, tokenizer: Path) -> None:
    pairs = [{"instruction": f"ask {number}", "chosen": "good " * number, "rejected": "bad"} for number in range(1, 9)]
    write(tmp_path / "in.jsonl", [*pairs, {"instruction": "x", "chosen": "good"}])
    config = replace(config, max_drop_fraction=0.5)
    summary = run(replace(config, append_eod=True, seq_length=96))
    names = ["chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels"]
    assert summary.manifest["columns"] == names and summary.manifest["samples"] == summary.ledger.kept == 8
    assert {file.name for file in Path(config.output_prefix).parent.iterdir()} >= {
        f"data_packed_{name}_document.{suffix}" for name in names for suffix in ("bin", "idx")
    }
    columns = {name: column(config, name) for name in names}
    loaded = load_tokenizer(tokenizer)
    for row, one in enumerate(pairs):
        for kind in ("chosen", "rejected"):
            labels = columns[f"{kind}_labels"][row]
            assert loaded.decode(labels[labels != IGNORED_LABEL]) == one[kind] + "<|im_end|>\n"
            assert len(labels) == len(columns[f"{kind}_input_ids"][row])
    learnt = sum(
        int((columns[f"{kind}_labels"][row] != IGNORED_LABEL).sum())
        for kind in ("chosen", "rejected")
        for row in range(8)
    )
    assert summary.manifest["learnt_tokens"] == learnt
    assert any(line.startswith("--append-eod changes nothing") for line in summary.notices)
    with pytest.raises(UserError, match="--pack is for instruction data, and these records are preference pairs"):
        run(replace(config, pack=True, seq_length=96))
    before = contents(config)
    assert contents_of_two_workers(config, tmp_path) == before


def contents_of_two_workers(config: PreprocessConfig, tmp_path: Path) -> dict[str, str]:
    two = replace(config, workers=2, append_eod=True, seq_length=96, output_prefix=str(tmp_path / "two" / "data"))
    run(two)
    return contents(two)


def test_text_is_padded_in_front_of_its_end(config: PreprocessConfig, tmp_path: Path, tokenizer: Path) -> None:
    """As MindSpeed-LLM does: with the id after the last token, a whole block where nothing is missing."""
    loaded = load_tokenizer(tokenizer)
    texts = ["one " * number for number in range(1, 12)]
    write(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    for append, ends in ((True, [loaded.eod_id]), (False, [])):
        summary = run(replace(config, pad_to_multiple_of=4, append_eod=append))
        found = IndexedColumn(column_path(config.output_prefix, "text", packed_name=False))
        for row, text in enumerate(texts):
            ids = loaded.encode(text)
            pads = 4 - len(ids) % 4 - len(ends)
            assert found[row].tolist() == [*ids, *[loaded.vocab_size] * pads, *ends]
            assert len(found[row]) % 4 == 0
        assert summary.manifest["vocab_size"] == loaded.vocab_size + 1
        assert any("padded vocabulary must reach" in line for line in summary.notices)
    with pytest.raises(UserError, match="--pack is for instruction data, and these records are plain text"):
        run(replace(config, pack=True, seq_length=48))


def test_messages_say_what_is_learnt(config: PreprocessConfig, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>hm</think>a", "loss": True}]
    more = [{"role": "user", "content": "r"}, {"role": "assistant", "content": "b", "weight": 0}]
    write(tmp_path / "in.jsonl", [{"messages": messages + more}])
    run(replace(config, mask_thoughts=True))
    labels = column(config, "labels")[0]
    text = load_tokenizer(config.tokenizer_name_or_path).decode(labels[labels != IGNORED_LABEL])
    assert text == "a<|im_end|>\n"
    assert not any("loss_weights" in file.name for file in Path(config.output_prefix).parent.iterdir())


def test_records_of_a_hugging_face_dataset(config: PreprocessConfig, tmp_path: Path) -> None:
    run(config)
    parameters = json.dumps({"path": "json", "data_files": str(tmp_path / "in.jsonl")})
    said: list[str] = []
    other = replace(config, hf_datasets_params=parameters, output_prefix=str(tmp_path / "hub" / "data"))
    preprocess(replace(other, cache_dir=str(tmp_path / "cache")), report=said.append)
    assert contents(other) == contents(config)
    assert any("--input is not read" in line for line in said)


def test_the_cache_may_be_the_folder_of_the_output(config: PreprocessConfig) -> None:
    packed = replace(config, pack=True, seq_length=64)
    run(packed)
    expected = contents(packed)
    run(replace(packed, cache_dir=str(Path(config.output_prefix).parent)))
    assert contents(packed) == expected


def test_flags_of_conversations_are_told_to_change_nothing_of_plain_text(
    config: PreprocessConfig, tmp_path: Path
) -> None:
    text = write(tmp_path / "text.jsonl", [{"text": "plain words"}])
    flags = {"mask_history": True, "map_keys": '{"prompt": "x"}', "cutoff_len": 64}
    found = run(replace(config, input=str(text), handler_name="GeneralPretrainHandler", **flags)).notices
    expected = ["--map-keys", "--mask-history", "--cutoff-len", "--prompt-type"]
    assert [notice.split()[0] for notice in found] == expected


@pytest.mark.parametrize(
    ("handler", "record"),
    [
        (
            "OpenAIInstructionHandler",
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        ),
        (
            "SharegptStylePairwiseHandler",
            {
                kind: [{"from": "human", "value": "q"}, {"from": "gpt", "value": kind}]
                for kind in ("chosen", "rejected")
            },
        ),
    ],
)
def test_columns_that_nobody_named_need_not_be_there(
    config: PreprocessConfig, handler: str, record: dict[str, Any]
) -> None:
    """Tools of OpenAI's records; messages beside answers that are whole conversations."""
    assert prepared(replace(config, handler_name=handler), [record]).ledger.kept == 1
