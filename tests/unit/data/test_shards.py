"""Several runs, each with its share of the records, end in the bytes of a single run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data import staging, workers
from mindspeed_ift.data.intake import InputMarks, Intake
from mindspeed_ift.data.preprocess import Summary, preprocess
from mindspeed_ift.data.shards import Share, ShareWriter

RECORDS = [
    {"instruction": f"question {number}", "input": "", "output": None if number == 9 else "answer " * (number % 7 + 1)}
    for number in range(41)
]
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "pack": {"pack": True, "seq_length": 64},
    "neat pack": {"pack": True, "neat_pack": True, "seq_length": 64},
    "split": {"overlong": "split", "seq_length": 40},
    "text": {"handler_name": "GeneralPretrainHandler", "json_keys": ("instruction", "input_text")},
}


@pytest.fixture
def config(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> PreprocessConfig:
    """Chunks of four records."""
    monkeypatch.setattr(workers, "CHUNK", 4)
    file = tmp_path / "in.jsonl"
    records = [{**record, "input_text": "the answer" * number} for number, record in enumerate(RECORDS, 1)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return PreprocessConfig(
        input=(str(file),),
        output_prefix=str(tmp_path / "out" / "data"),
        tokenizer_name_or_path=str(tokenizer),
        prompt_type="qwen3",
        num_shards=3,
    )


def run(config: PreprocessConfig, **change: Any) -> Summary:
    return preprocess(replace(config, **change), report=lambda line: None)


def encode(config: PreprocessConfig, *indices: int, **change: Any) -> list[Summary]:
    return [run(config, shard_index=index, **change) for index in indices]


def datasets(prefix: str) -> dict[str, str]:
    """The checksum of each file of the dataset itself, its ledger included."""
    found = [path for path in Path(prefix).parent.iterdir() if path.suffix in (".bin", ".idx", ".parquet")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.mark.parametrize("mode", MODES)
def test_the_bytes_of_a_single_run(config: PreprocessConfig, tmp_path: Path, mode: str) -> None:
    config = replace(config, **MODES[mode])
    once = run(config, num_shards=1, output_prefix=str(tmp_path / "once" / "data"))
    encoded = encode(config, 2, 0, 1)
    assert sum(summary.ledger.read for summary in encoded) == 41
    assert not datasets(config.output_prefix)
    joined = run(config, merge_shards=True)
    assert datasets(config.output_prefix) == datasets(str(tmp_path / "once" / "data"))
    assert joined.ledger.state() == once.ledger.state() and joined.notices == once.notices
    assert {**joined.manifest, "flags": None} == {**once.manifest, "flags": None}


def test_weights_of_messages(config: PreprocessConfig, tmp_path: Path) -> None:
    """In the chunks of one share only."""
    messages = [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a" * number}] for number in range(12)
    ]
    messages[6][1]["weight"] = 0.5
    Path(config.input[0]).write_text("".join(json.dumps({"messages": one}) + "\n" for one in messages))
    run(config, num_shards=1, output_prefix=str(tmp_path / "once" / "data"))
    encode(config, 0, 1, 2)
    run(config, merge_shards=True)
    assert datasets(config.output_prefix) == datasets(str(tmp_path / "once" / "data"))
    assert any("loss_weights" in name for name in datasets(config.output_prefix))


def test_any_number_of_workers_and_more_shards_than_chunks(config: PreprocessConfig, tmp_path: Path) -> None:
    config = replace(config, max_samples=9, num_shards=5)
    once = run(config, num_shards=1, output_prefix=str(tmp_path / "once" / "data"))
    assert [summary.ledger.read for summary in encode(config, 0, 1, 2, 3, workers=2)] == [4, 4, 1, 0]
    encode(config, 4)
    joined = run(config, merge_shards=True)
    assert datasets(config.output_prefix) == datasets(str(tmp_path / "once" / "data"))
    assert joined.notices == once.notices and "--max-samples" in joined.notices[0]


def test_tells_what_comes_next(config: PreprocessConfig) -> None:
    (summary,) = encode(config, 1)
    assert "the same command with --merge-shards instead of --shard-index 1" in summary.notices[-1]
    assert summary.manifest["samples"] == summary.ledger.kept == 13
    with pytest.raises(
        UserError, match="2 of 3 shards are missing, first .*shard-00000-of-00003.json; .*--shard-index 0"
    ):
        run(config, merge_shards=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_type": "qwen"}, "other flags: --prompt-type qwen3 .here qwen.; give all shards the same"),
        ({"input": "other"}, "other flags: --input"),
    ],
)
def test_shards_of_other_runs_are_refused(
    config: PreprocessConfig, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    encode(config, 0, 1, 2)
    if "input" in change:
        change = {"input": (str(Path(config.input[0]).rename(tmp_path / "other.jsonl")),)}
    with pytest.raises(UserError, match=message):
        run(config, merge_shards=True, **change)
    assert not datasets(config.output_prefix)


def test_changed_input_is_noticed(config: PreprocessConfig) -> None:
    encode(config, 0, 1, 2)
    with Path(config.input[0]).open("a") as file:
        file.write(json.dumps(RECORDS[0]) + "\n")
    with pytest.raises(UserError, match="was made with other input files"):
        run(config, merge_shards=True)


@pytest.mark.parametrize("kind", ["values", "chunks"])
def test_damage_is_noticed(config: PreprocessConfig, kind: str) -> None:
    encode(config, 0, 1, 2)
    path = Path(f"{Share(1, 3).prefix(config.output_prefix)}.{kind}")
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path.name} is not as it was written; encode this shard again"):
        run(config, merge_shards=True)


@pytest.mark.parametrize("changed", [False, True])
def test_a_shard_goes_on_where_it_stopped(
    config: PreprocessConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    monkeypatch.setattr(staging, "SECONDS_BETWEEN_MARKS", 0)
    add, calls = ShareWriter.add, []

    def fails(writer: ShareWriter, chunk: workers.EncodedChunk) -> None:
        calls.append(writer.done)
        if len(calls) == 3:
            raise KeyboardInterrupt
        add(writer, chunk)

    monkeypatch.setattr(ShareWriter, "add", fails)
    with pytest.raises(KeyboardInterrupt):
        encode(config, 1)
    (folder,) = Path(config.output_prefix).parent.iterdir()
    assert folder.name == "data.shard-00001-of-00003.partial"
    if changed:
        (folder / "data.shard-00001-of-00003.values").write_bytes(b"")
    said: list[str] = []
    preprocess(replace(config, shard_index=1), report=said.append)
    assert calls[3:] == ([0, 1, 2, 3] if changed else [2, 3])
    assert any("beginning anew" in line if changed else "going on after chunk 2" in line for line in said)
    encode(config, 0, 2)
    run(config, merge_shards=True)
    run(config, num_shards=1, output_prefix=str(tmp_path / "once" / "data"))
    assert datasets(config.output_prefix) == datasets(str(tmp_path / "once" / "data"))


def test_joining_goes_on_where_it_stopped(
    config: PreprocessConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(config, 0, 1, 2)
    monkeypatch.setattr("mindspeed_ift.data.staging.SECONDS_BETWEEN_MARKS", 0)
    monkeypatch.setattr(InputMarks, "known", True)
    add, calls = Intake.add, []

    def fails(intake: Intake, chunk: workers.EncodedChunk) -> None:
        calls.append(intake.ledger.read)
        if len(calls) == 4:
            raise KeyboardInterrupt
        add(intake, chunk)

    monkeypatch.setattr(Intake, "add", fails)
    with pytest.raises(KeyboardInterrupt):
        run(config, merge_shards=True)
    run(config, merge_shards=True)
    assert calls[4] == 12
    run(config, num_shards=1, output_prefix=str(tmp_path / "once" / "data"))
    assert datasets(config.output_prefix) == datasets(str(tmp_path / "once" / "data"))


def test_too_many_malformed_records_are_found_at_the_end(config: PreprocessConfig) -> None:
    config = replace(config, max_drop_fraction=0.01)
    encode(config, 0, 1, 2)
    with pytest.raises(UserError, match="1 of 41 records are malformed"):
        run(config, merge_shards=True)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_stream_of_the_hub_is_no_input_of_shards(config: PreprocessConfig, tmp_path: Path, streaming: bool) -> None:
    """Two runs may read other records of it, and nothing would tell."""
    parameters = {"path": "json", "data_files": config.input[0], "streaming": streaming}
    hub = replace(config, input=(), hf_datasets_params=json.dumps(parameters), cache_dir=str(tmp_path / "cache"))
    if streaming:
        with pytest.raises(UserError, match="--num-shards: Hugging Face dataset json is a stream"):
            encode(hub, 0)
    else:
        encode(hub, 0, 1, 2)
        assert run(hub, merge_shards=True).ledger.read == 41
