"""Datasets are joined column by column, in the order of their names; what does not go together is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.merge import MergeConfig
from mindspeed_ift.data import merging
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.indexed import DatasetWriter, IndexedColumn, column_path, manifest_path, read_manifest
from mindspeed_ift.data.ledger_file import ledger_path
from mindspeed_ift.data.merging import MergeSummary, find_columns, merge
from mindspeed_ift.data.preprocess import preprocess
from mindspeed_ift.data.sample import Sample
from tests.tiny_dataset import random_sample, write_dataset
from tests.tiny_tokenizer import make_tiny_tokenizer

MADE = {
    "tokenizer_sha256": "t" * 64,
    "template_sha256": "p" * 64,
    "prompt_type": "qwen3",
    "vocab_size": 50,
    "eod_id": 1,
    "pad_id": 0,
    "turn_end_ids": [1],
    "seq_length": 64,
    "samples": 3,
    "input": ["in.jsonl"],
}


def rows(seed: int, count: int = 3) -> list[Sample]:
    generator = np.random.default_rng(seed)
    return [random_sample(generator, 2) for _ in range(count)]


def joined(folder: Path, source: str = "parts", keys: tuple[str, ...] = (), output: str = "whole/data") -> MergeSummary:
    given = tuple(str(folder / part) for part in source.split(","))
    return merge(MergeConfig(given, str(folder / output), keys))


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    (tmp_path / "parts").mkdir()
    for number, name in enumerate(("b", "a", "a1")):
        write_dataset(tmp_path / "parts" / name, rows(number), {**MADE, "input": [f"{name}.jsonl"]})
    return tmp_path


def test_joined_is_as_if_written_at_once(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, in the order of file names, with its checksums."""
    monkeypatch.setattr(merging, "_BLOCK", 5)
    summary = joined(parts)
    assert [Path(prefix).name for prefix in summary.prefixes] == ["a1", "a", "b"]
    write_dataset(parts / "once", [*rows(2), *rows(1), *rows(0)], MADE)
    for column in ("input_ids", "labels", "attention_mask"):
        for suffix in (".bin", ".idx"):
            ours = Path(column_path(parts / "whole" / "data", column) + suffix)
            assert ours.read_bytes() == Path(column_path(parts / "once", column) + suffix).read_bytes()
    manifest = read_manifest(parts / "whole" / "data")
    assert manifest == summary.manifest and manifest["samples"] == 9 and not summary.notices
    assert manifest["input"] == ["a1.jsonl", "a.jsonl", "b.jsonl"] and manifest["vocab_size"] == 50
    once = read_manifest(parts / "once")
    assert manifest["files"] == {name.replace("once", "data"): file for name, file in once["files"].items()}
    assert len(InstructionDataset(parts / "whole" / "data")) == 9


def test_shards_are_joined_by_what_made_them(tmp_path: Path) -> None:
    (tmp_path / "data.shard-00000-of-00002.json").write_text("{}")
    for given in (tmp_path, tmp_path / "data"):
        with pytest.raises(
            UserError, match="shards, not datasets; join them by preprocess_data.py with --merge-shards"
        ):
            merge(MergeConfig((str(given),), str(tmp_path / "out")))


def test_a_dataset_is_not_joined_to_itself(parts: Path) -> None:
    with pytest.raises(UserError, match="parts/a is --output-prefix too; give the whole another name"):
        joined(parts, "parts/a,parts/b", output="parts/a")


def test_prefixes_are_joined_in_the_order_given(parts: Path) -> None:
    summary = joined(parts, "parts/b,parts/a")
    assert [Path(prefix).name for prefix in summary.prefixes] == ["b", "a"]
    assert [Path(prefix).name for prefix in joined(parts, "parts/a*").prefixes] == ["a1", "a"]


def test_a_column_is_known_by_its_whole_name(parts: Path) -> None:
    """``labels`` is no part of ``my_labels``; MindSpeed-LLM takes whatever contains the key."""
    with DatasetWriter(parts / "parts" / "c", ("my_labels",)) as writer:
        writer.append({"my_labels": np.zeros(2, np.int32)}, np.array([2], np.int32))
        writer.commit({"format": 1})
    keys = ("packed_labels_document",)
    assert [Path(prefix).name for prefix in joined(parts, keys=keys).prefixes] == ["a1", "a", "b"]
    assert not Path(column_path(parts / "whole" / "data", "input_ids") + ".bin").exists()
    with pytest.raises(UserError, match="c_packed_attention_mask_document.idx is missing, and others have it"):
        joined(parts)
    with pytest.raises(UserError, match="packed_texts_document: no dataset of --input has"):
        joined(parts, keys=("packed_labels_document", "packed_texts_document"))


def test_the_result_of_an_earlier_run_is_not_joined_again(parts: Path) -> None:
    for _ in range(2):
        assert len(joined(parts, output="parts/whole").prefixes) == 3


def test_plain_text(tmp_path: Path) -> None:
    for name, values in (("x", [1, 2]), ("y", [3])):
        with DatasetWriter(tmp_path / name, ("text",), packed_name=False) as writer:
            writer.append({"text": np.array(values, np.int32)}, np.ones(len(values), np.int32))
            writer.commit({"format": 1, "tokens": len(values)})
    summary = merge(MergeConfig((str(tmp_path),), str(tmp_path / "out" / "both")))
    found = IndexedColumn(tmp_path / "out" / "both_text_document")
    assert [row.tolist() for row in (found[0], found[1], found[2])] == [[1], [2], [3]]
    assert summary.manifest["tokens"] == 3
    write_dataset(tmp_path / "z", rows(0))
    with pytest.raises(UserError, match="holds instruction data and plain text"):
        merge(MergeConfig((str(tmp_path),), str(tmp_path / "out" / "both")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer_sha256": "u"}, r"a1 and .*/a do not go together: tokenizer_sha256 is tttt.* and u \("),
        ({"template_sha256": "u"}, "template_sha256 is pppp"),
        ({"prompt_type": "qwen"}, "prompt_type is qwen3 and qwen "),
        ({"pack": True, "seq_length": 64}, "pack is False and True"),
        ({"neat_pack": True}, "neat_pack is False and True"),
        ({"append_eod": True}, "append_eod is None and True"),
    ],
)
def test_what_was_not_made_alike_is_refused(parts: Path, change: dict[str, Any], message: str) -> None:
    write_dataset(parts / "parts" / "a", rows(1), {**MADE, **change})
    with pytest.raises(UserError, match=message):
        joined(parts)
    assert not (parts / "whole").exists()


def test_packed_rows_have_one_length(tmp_path: Path) -> None:
    for name, length in (("a", 64), ("b", 32)):
        write_dataset(tmp_path / "parts" / name, rows(1), {**MADE, "pack": True, "seq_length": length})
    with pytest.raises(UserError, match="seq_length is 64 and 32"):
        joined(tmp_path)


def test_other_differences_are_said(parts: Path) -> None:
    write_dataset(parts / "parts" / "a", rows(1), {**MADE, "seq_length": 32})
    summary = joined(parts)
    assert summary.notices == ("not the same for all, so not in the manifest: seq_length: 64, 32",)
    assert "seq_length" not in summary.manifest


def test_datasets_of_others_have_no_manifest(parts: Path) -> None:
    manifest_path(parts / "parts" / "a").unlink()
    (notice,) = joined(parts).notices
    assert "no manifest beside" in notice and notice.count("/parts/") == 1
    dataset = InstructionDataset(parts / "whole" / "data")
    assert not dataset.has_segments and dataset.manifest is None


def test_repeated_document_numbers_of_mindspeed_llm(parts: Path) -> None:
    for column in ("input_ids", "labels", "attention_mask"):
        index = Path(column_path(parts / "parts" / "a", column) + ".idx")
        content = bytearray(index.read_bytes())
        content[26:34] = (5).to_bytes(8, "little")
        content[-32:] = np.array([0, 0, 1, 2, 3], "<i8").tobytes()
        index.write_bytes(content)
    assert len(joined(parts).manifest["files"]) == 6
    index.write_bytes(bytes(content[:-40]) + np.array([0, 1, 3], "<i8").tobytes())
    short = bytearray(index.read_bytes())
    short[26:34] = (3).to_bytes(8, "little")
    index.write_bytes(short)
    with pytest.raises(UserError, match="documents of several sequences"):
        joined(parts)


def test_damage_is_named_before_anything_is_written(parts: Path) -> None:
    values = Path(column_path(parts / "parts" / "a", "labels") + ".bin")
    values.write_bytes(values.read_bytes()[:-4])
    with pytest.raises(UserError, match="a_packed_labels_document.bin has .* bytes where"):
        joined(parts)
    assert not (parts / "whole").exists()


def test_columns_of_several_runs_are_refused(parts: Path) -> None:
    write_dataset(parts / "other", rows(1, 4))
    for suffix in (".bin", ".idx"):
        Path(column_path(parts / "other", "labels") + suffix).replace(
            column_path(parts / "parts" / "a", "labels") + suffix
        )
    with pytest.raises(UserError, match="3 input_ids, 3 attention_mask, 4 labels: not of one run"):
        joined(parts)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input": ()}, "--input is missing"),
        ({"output_prefix": " "}, "--output-prefix is missing"),
        ({"input": ("nowhere",)}, "--input nowhere: no dataset there"),
        ({"merge_group_keys": ("packed_labels_document",) * 2}, "names packed_labels_document twice"),
        ({"merge_group_keys": ("packed_labels_document", "text_document")}, "join each apart"),
        ({"merge_group_keys": ("labels",)}, "--merge-group-keys labels: .* packed_labels_document"),
    ],
)
def test_bad_flags(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        merge(MergeConfig(**{"input": ("somewhere",), "output_prefix": "out", **given}))


def test_prefixes_may_hold_underscores(tmp_path: Path) -> None:
    write_dataset(tmp_path / "my_packed_v2", rows(0))
    found = find_columns(MergeConfig((str(tmp_path),), "out"))
    assert list(found) == ["packed_input_ids_document", "packed_attention_mask_document", "packed_labels_document"]
    assert json.dumps(found).count("my_packed_v2") == 3


def test_ledgers_are_joined(tmp_path: Path) -> None:
    """Accounts add up, and every record has its row, though each file has its own words."""
    tokenizer = str(make_tiny_tokenizer(tmp_path / "tokenizer"))
    for name, outputs in (("a", ["x", None]), ("b", ["y", 3, "z"])):
        records = [{"instruction": "q", "output": output} for output in outputs]
        (tmp_path / f"{name}.json").write_text(json.dumps(records), encoding="utf-8")
        config = PreprocessConfig(
            input=(str(tmp_path / f"{name}.json"),),
            output_prefix=str(tmp_path / "parts" / name),
            tokenizer_name_or_path=tokenizer,
            max_drop_fraction=1,
        )
        preprocess(config, report=lambda line: None)
    summary = joined(tmp_path)
    assert summary.notices == ()
    assert {name: summary.manifest["ledger"][name] for name in ("read", "kept", "malformed")} == {
        "read": 5,
        "kept": 3,
        "malformed": 2,
    }
    path = ledger_path(tmp_path / "whole" / "data")
    rows = parquet.read_table(path).to_pylist()
    assert [(Path(row["file"]).name, row["record"]) for row in rows] == [
        ("a.json", 1),
        ("a.json", 2),
        ("b.json", 1),
        ("b.json", 2),
        ("b.json", 3),
    ]
    assert [row["reason"] for row in rows] == [None, "'output' is missing or null", None, "'output' is not text", None]
    assert summary.manifest["files"][path.name]["bytes"] == path.stat().st_size
    ledger_path(tmp_path / "parts" / "a").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="a.ledger.parquet is no ledger"):
        joined(tmp_path)


def test_weights_go_with_the_labels(tmp_path: Path) -> None:
    """Also of a part in which all labels count alike, and where only the columns of MindSpeed-LLM are named."""
    tokenizer = str(make_tiny_tokenizer(tmp_path / "tokenizer"))
    for name, weight in (("a", None), ("b", 0.5)):
        answer = {"role": "assistant", "content": "x"} | ({"weight": weight} if weight else {})
        (tmp_path / f"{name}.json").write_text(json.dumps([{"messages": [{"role": "user", "content": "q"}, answer]}]))
        source, output = (str(tmp_path / f"{name}.json"),), str(tmp_path / "parts" / name)
        preprocess(PreprocessConfig(input=source, output_prefix=output, tokenizer_name_or_path=tokenizer), print)
    keys = tuple(f"packed_{name}_document" for name in ("input_ids", "attention_mask", "labels"))
    for given in ((), keys):
        assert joined(tmp_path, keys=given).manifest["columns"][-1] == "loss_weights"
        dataset = InstructionDataset(tmp_path / "whole" / "data")
        for row, weight in ((0, 1), (1, 0.5)):
            sample = dataset[row]
            assert sample.loss_weights is not None
            np.testing.assert_array_equal(sample.loss_weights, (sample.labels != -100) * np.float32(weight))


def test_a_prefix_with_a_comma_is_one_prefix(tmp_path: Path) -> None:
    for name in ("a,b", "c"):
        write_dataset(tmp_path / name, rows(1))
    given = (str(tmp_path / "a,b"), str(tmp_path / "c"))
    (prefixes, *_) = find_columns(MergeConfig(given, str(tmp_path / "whole"))).values()
    assert prefixes == list(given)
