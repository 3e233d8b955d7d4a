"""The column of weights: there when some record asks for it, through packing, shards, merging and resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import RunError
from mindspeed_ift.config.merge import MergeConfig
from mindspeed_ift.data import intake, staging, workers
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.indexed import column_path
from mindspeed_ift.data.merging import merge
from mindspeed_ift.data.pack_index import build_index
from mindspeed_ift.data.packed_rows import rules_of
from mindspeed_ift.data.packed_view import PackedView
from mindspeed_ift.data.preprocess import preprocess
from mindspeed_ift.data.sample import IGNORED_LABEL
from mindspeed_ift.verify.dataset import verify_dataset
from tests.preparing import contents, run, write

MODES = [{}, {"pack": True, "neat_pack": True, "seq_length": 96}, {"pack": True, "seq_length": 96}]


def weighed_records(count: int) -> list[dict[str, Any]]:
    """Only the records from the eighth on ask for other weights than 0 and 1."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"question {number}"},
                {"role": "assistant", "content": "answer " * (number % 5 + 1), "weight": 0.25 if number > 7 else 1},
            ]
        }
        for number in range(count)
    ]


@pytest.mark.parametrize("mode", MODES)
def test_weights_are_a_column_that_is_there_when_asked_for(
    config: PreprocessConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: dict[str, Any]
) -> None:
    monkeypatch.setattr(workers, "CHUNK", 3)
    config = replace(config, **mode)
    write(tmp_path / "in.jsonl", weighed_records(20))
    manifest = run(config).manifest
    assert manifest["columns"] == ["input_ids", "attention_mask", "labels", "loss_weights"]
    dataset = InstructionDataset(config.output_prefix)
    assert dataset.has_weights
    ones = quarters = 0
    for number in range(len(dataset)):
        sample = dataset[number]
        weights = sample.loss_weights
        assert weights is not None and weights.dtype == np.float32 and len(weights) == len(sample)
        np.testing.assert_array_equal(weights > 0, sample.labels != IGNORED_LABEL)
        ones, quarters = ones + int((weights == 1).sum()), quarters + int((weights == 0.25).sum())
    assert ones + quarters == manifest["learnt_tokens"] and ones and quarters
    assert not verify_dataset(config.output_prefix).problems
    before = contents(config)
    two = replace(config, workers=2, output_prefix=str(tmp_path / "two" / "data"))
    run(two)
    assert contents(two) == before
    write(tmp_path / "in.jsonl", weighed_records(8))
    assert run(config).manifest["columns"] == ["input_ids", "attention_mask", "labels"]
    assert not InstructionDataset(config.output_prefix).has_weights


def test_weights_of_shards_and_of_merged_datasets(
    config: PreprocessConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "CHUNK", 3)
    write(tmp_path / "in.jsonl", weighed_records(20))
    run(config)
    for index in (0, 1):
        run(replace(config, num_shards=2, shard_index=index, output_prefix=str(tmp_path / "shards" / "data")))
    whole = replace(config, num_shards=2, merge_shards=True, output_prefix=str(tmp_path / "shards" / "data"))
    run(whole)
    assert contents(whole) == contents(config)
    merge(MergeConfig(input=(config.output_prefix, whole.output_prefix), output_prefix=str(tmp_path / "all" / "data")))
    found = InstructionDataset(tmp_path / "all" / "data")
    assert len(found) == 40 and found[39].loss_weights is not None
    np.testing.assert_array_equal(found[39].loss_weights, InstructionDataset(config.output_prefix)[19].loss_weights)


def test_weights_of_a_run_that_goes_on(
    config: PreprocessConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "CHUNK", 3)
    monkeypatch.setattr(staging, "SECONDS_BETWEEN_MARKS", 0.0)
    write(tmp_path / "in.jsonl", weighed_records(20))
    run(config)
    expected = contents(config)
    other = replace(config, output_prefix=str(tmp_path / "other" / "data"))
    add, said = intake.Intake.add, []

    def fail(self: intake.Intake, chunk: workers.EncodedChunk) -> None:
        if self.ledger.read >= 15:
            raise RunError("killed")
        add(self, chunk)

    monkeypatch.setattr(intake.Intake, "add", fail)
    with pytest.raises(RunError, match="killed"):
        run(other)
    monkeypatch.setattr(intake.Intake, "add", add)
    preprocess(other, report=said.append)
    assert any("going on after record" in line for line in said)
    assert contents(other) == expected


def test_a_view_of_packed_rows_has_the_weights_of_packed_data(config: PreprocessConfig, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", weighed_records(20))
    run(config)
    packed = replace(config, pack=True, neat_pack=True, seq_length=96, output_prefix=str(tmp_path / "packed" / "data"))
    run(packed)
    dataset = InstructionDataset(config.output_prefix)
    view = PackedView(dataset, build_index(dataset, rules_of(packed)), dataset.manifest["pad_id"])
    rows = InstructionDataset(packed.output_prefix)
    assert len(view) == len(rows)
    for number in range(len(view)):
        np.testing.assert_array_equal(view[number].loss_weights, rows[number].loss_weights)


def test_damaged_weights_are_found(config: PreprocessConfig, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", weighed_records(20))
    run(config)
    file = Path(f"{column_path(config.output_prefix, 'loss_weights')}.bin")
    values = np.fromfile(file, np.float32)
    values[0] = np.nan
    values.tofile(file)
    problems = verify_dataset(config.output_prefix).problems
    assert any("document 0, position 0: weight nan where nothing, or all, is learnt" in line for line in problems)
