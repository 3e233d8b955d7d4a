"""The whole offline pipeline: what it writes, counts, says and refuses."""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

import mindspeed_ift
from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import RunError, UserError
from mindspeed_ift.data import indexed, workers
from mindspeed_ift.data.indexed import IndexedColumn, column_path, read_manifest
from mindspeed_ift.data.ledger_file import ledger_path
from mindspeed_ift.data.preprocess import preprocess
from mindspeed_ift.data.sample import IGNORED_LABEL
from mindspeed_ift.data.tokenizer import load_tokenizer
from tests.preparing import RECORDS, column, run, write


def digests(config: PreprocessConfig) -> dict[str, str]:
    folder = Path(config.output_prefix).parent
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.suffix != ".json"
    }


def test_manifest_tells_what_is_there(config: PreprocessConfig, tokenizer: Path) -> None:
    summary = run(config)
    manifest = read_manifest(config.output_prefix)
    assert manifest == json.loads(json.dumps(summary.manifest))
    loaded = load_tokenizer(tokenizer)
    ids, labels = column(config, "input_ids"), column(config, "labels")
    assert manifest["samples"] == manifest["conversations"] == len(ids) == 40
    assert manifest["tokens"] == ids.lengths.sum()
    assert manifest["learnt_tokens"] == sum(int((labels[row] != IGNORED_LABEL).sum()) for row in range(40))
    assert manifest["columns"] == ["input_ids", "attention_mask", "labels"]
    assert (manifest["eod_id"], manifest["pad_id"], manifest["vocab_size"]) == (
        loaded.eod_id,
        loaded.pad_id,
        loaded.vocab_size,
    )
    assert (
        manifest["turn_end_ids"] == loaded.encode("<|im_end|>\n") and manifest["tokenizer_sha256"] == loaded.fingerprint
    )
    content = Path(config.input).read_bytes()
    assert manifest["input"] == [
        {"file": config.input, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    ]
    assert manifest["flags"]["prompt_type"] == "qwen3" and manifest["version"] == mindspeed_ift.__version__
    for name, file in manifest["files"].items():
        content = (Path(config.output_prefix).parent / name).read_bytes()
        assert file == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize(
    "packing",
    [
        {},
        {"pack": True, "neat_pack": True, "seq_length": 64},
        {"pack": True, "seq_length": 64, "packing_algorithm": "best-fit"},
    ],
)
def test_same_bytes_for_any_number_of_workers(
    config: PreprocessConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: dict[str, Any]
) -> None:
    monkeypatch.setattr(workers, "CHUNK", 3)
    one = replace(config, **packing)
    two = replace(one, workers=2, output_prefix=str(tmp_path / "two" / "data"))
    assert run(one).ledger.as_dict() == run(two).ledger.as_dict()
    assert digests(one) == digests(two)


def test_neat_rows_hold_each_sample_once(config: PreprocessConfig, tmp_path: Path) -> None:
    run(config)
    plain = sorted(column(config, "input_ids")[row].tolist() for row in range(40))
    neat = replace(config, pack=True, neat_pack=True, seq_length=64, output_prefix=str(tmp_path / "neat" / "data"))
    manifest = run(neat).manifest
    ids, mask, labels = (column(neat, name) for name in ("input_ids", "attention_mask", "labels"))
    assert set(ids.lengths.tolist()) == {64} and manifest["samples"] == len(ids) and manifest["conversations"] == 40
    found = []
    for row in range(len(ids)):
        assert (ids[row][mask[row] == 0] == manifest["pad_id"]).all() and (
            labels[row][mask[row] == 0] == IGNORED_LABEL
        ).all()
        assert mask[row][-1] == 0, "one position stays a pad"
        found += [ids[row][mask[row] == segment].tolist() for segment in range(1, mask[row].max() + 1)]
    assert sorted(found) == plain
    assert manifest["tokens"] == sum(map(len, plain))


def test_aligned_samples_have_pads_of_their_own(config: PreprocessConfig, tmp_path: Path) -> None:
    """Each segment a multiple of 8, its pads not learnt, no token lost."""
    run(config)
    plain = sorted(column(config, "labels")[row].tolist() for row in range(40))
    aligned = replace(
        config,
        pack=True,
        neat_pack=True,
        seq_length=64,
        pad_to_multiple_of=8,
        output_prefix=str(tmp_path / "aligned" / "data"),
    )
    manifest = run(aligned).manifest
    ids, mask, labels = (column(aligned, name) for name in ("input_ids", "attention_mask", "labels"))
    found = []
    for row in range(len(ids)):
        for segment in range(1, mask[row].max() + 1):
            places = mask[row] == segment
            assert places.sum() % 8 == 0
            values = labels[row][places].tolist()
            size = max(place for place, label in enumerate(values) if label != IGNORED_LABEL) + 1
            assert len(values) - size < 8 and (ids[row][places][size:] == manifest["pad_id"]).all()
            found.append(values[:size])
    assert sorted(found) == plain


def test_sequential_rows_keep_the_order_of_the_records(config: PreprocessConfig, tmp_path: Path) -> None:
    run(config)
    plain = [token for row in range(40) for token in column(config, "input_ids")[row].tolist()]
    rows = replace(config, pack=True, neat_pack=True, seq_length=64, packing_algorithm="sequential")
    rows = replace(rows, output_prefix=str(tmp_path / "rows" / "data"))
    assert run(rows).manifest["packing_algorithm"] == "sequential"
    ids, mask = column(rows, "input_ids"), column(rows, "attention_mask")
    assert [token for row in range(len(ids)) for token in ids[row][mask[row] > 0].tolist()] == plain


def test_a_row_holds_no_more_segments_than_asked(config: PreprocessConfig) -> None:
    packed = replace(config, pack=True, neat_pack=True, seq_length=128, max_segments=3)
    run(packed)
    mask = column(packed, "attention_mask")
    assert {int(mask[row].max()) for row in range(len(mask))} == {2} and len(mask) == 20


def test_pack_marks_nothing(config: PreprocessConfig) -> None:
    packed = replace(config, pack=True, seq_length=64)
    run(packed)
    mask = column(packed, "attention_mask")
    assert all((mask[row] == 1).all() for row in range(len(mask)))


def test_ledger_counts_what_is_cut_and_dropped(config: PreprocessConfig, tmp_path: Path) -> None:
    file = write(
        tmp_path / "mixed.jsonl",
        [
            *RECORDS[:2],
            {"instruction": "x", "output": None},
            {"instruction": "y", "output": 3},
            {"instruction": "z"},
            {"instruction": "long", "output": "word " * 200},
        ],
    )
    ledger = run(replace(config, input=str(file), seq_length=60, max_drop_fraction=0.5)).ledger
    assert (ledger.read, ledger.kept) == (6, 3)
    dropped = {reason: tally.count for reason, tally in ledger.dropped.items()}
    assert dropped == {"'output' is missing or null": 2, "'output' is not text": 1}
    assert ledger.dropped["'output' is missing or null"].first == [f"{file}:3", f"{file}:5"]
    assert {reason: tally.count for reason, tally in ledger.noted.items()} == {"longer than the length asked for": 1}
    assert ledger.rows()[0] == ("read", 6, "")


def test_every_record_has_a_row_in_the_ledger(config: PreprocessConfig, tmp_path: Path) -> None:
    file = write(
        tmp_path / "mixed.jsonl",
        [RECORDS[0], {"instruction": "y", "output": 3}, {"instruction": "long", "output": "word " * 200}],
    )
    summary = run(replace(config, input=str(file), seq_length=60, max_drop_fraction=0.5))
    rows = parquet.read_table(ledger_path(config.output_prefix)).to_pylist()
    lengths = column(config, "input_ids").lengths.tolist()
    learnt = [int((column(config, "labels")[number] != IGNORED_LABEL).sum()) for number in range(2)]
    whole = len(load_tokenizer(config.tokenizer_name_or_path).encode("word " * 200))
    assert [(row["file"], row["record"], row["outcome"], row["reason"]) for row in rows] == [
        (str(file), 1, "kept", None),
        (str(file), 2, "dropped", "'output' is not text"),
        (str(file), 3, "cut", "longer than the length asked for"),
    ]
    assert [row["tokens"] for row in rows] == [lengths[0], 0, lengths[1]] and lengths[1] == 59
    assert [row["learnt_tokens"] for row in rows] == [learnt[0], 0, learnt[1]]
    assert [row["samples"] for row in rows] == [1, 0, 1]
    assert rows[0]["cut_tokens"] == rows[1]["cut_tokens"] == 0 and whole - 60 < rows[2]["cut_tokens"] < whole
    assert summary.ledger.noted["longer than the length asked for"].cut_tokens == rows[2]["cut_tokens"]
    assert summary.manifest["files"]["data.ledger.parquet"]["bytes"] == ledger_path(config.output_prefix).stat().st_size


def test_too_many_malformed_records_fail_the_run(config: PreprocessConfig, tmp_path: Path) -> None:
    """Those that are left out for their length are not malformed."""
    long = [{"instruction": "long", "output": "word " * 200}] * 5
    file = write(tmp_path / "mixed.jsonl", [*RECORDS[:3], {"instruction": "x", "output": None}, *long])
    mixed = replace(config, input=str(file), seq_length=60, prompt_type="qwen", max_drop_fraction=0.12)
    match = r"1 of 9 records are malformed, .*0.1 allows: .*1 'output' is missing or null \(first .*mixed.jsonl:4\)"
    with pytest.raises(UserError, match=match):
        run(replace(mixed, max_drop_fraction=0.1))
    assert not list(Path(config.output_prefix).parent.iterdir())
    ledger = run(mixed).ledger
    assert (ledger.read, ledger.kept, ledger.malformed) == (9, 3, 1)
    with pytest.raises(UserError, match="--max-drop-fraction 1.5 must lie between 0 and 1"):
        run(replace(mixed, max_drop_fraction=1.5))


def test_long_samples_are_dropped_with_the_older_template(config: PreprocessConfig, tmp_path: Path) -> None:
    file = write(tmp_path / "long.jsonl", [RECORDS[0], {"instruction": "long", "output": "word " * 200}])
    ledger = run(replace(config, input=str(file), seq_length=60, prompt_type="qwen")).ledger
    assert {reason: tally.count for reason, tally in ledger.dropped.items()} == {"60 tokens or more (--seq-length)": 1}


def test_several_datasets_by_weight(config: PreprocessConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for any number of workers; what was left out or repeated is said."""
    monkeypatch.setattr(workers, "CHUNK", 7)
    other = write(tmp_path / "other.jsonl", [{"instruction": "other", "output": "short"}] * 5)
    mixed = replace(
        config, input=f"{config.input},{other}", mix_strategy="interleave_over", interleave_probs="0.7,0.3", seed=5
    )
    summary = run(mixed)
    assert summary.ledger.read == summary.manifest["samples"] > 45
    assert any("other.jsonl" in line and "up to" in line for line in summary.notices)
    assert summary.manifest["mix_strategy"] == "interleave_over" and summary.manifest["seed"] == 5
    two = replace(mixed, workers=2, output_prefix=str(tmp_path / "two" / "data"))
    run(two)
    assert digests(two) == digests(mixed)
    other_seed = replace(mixed, seed=6, output_prefix=str(tmp_path / "three" / "data"))
    run(other_seed)
    assert digests(other_seed) != digests(mixed)
    with pytest.raises(UserError, match="--interleave-probs has 2 numbers for 3 datasets"):
        run(replace(mixed, input=f"{mixed.input},{other}"))


def test_plain_text(config: PreprocessConfig, tmp_path: Path, tokenizer: Path) -> None:
    file = write(tmp_path / "text.jsonl", [{"text": "one"}, {"text": ""}, {"text": "two"}])
    text = replace(config, input=str(file), handler_name="GeneralPretrainHandler", append_eod=True)
    summary = run(text)
    found = IndexedColumn(column_path(text.output_prefix, "text", packed_name=False))
    loaded = load_tokenizer(tokenizer)
    assert [found[row].tolist() for row in range(len(found))] == [
        [*loaded.encode(word), loaded.eod_id] for word in ("one", "two")
    ]
    assert summary.ledger.dropped["the text is empty"].count == 1 and summary.manifest["columns"] == ["text"]


def test_an_empty_text_takes_no_other_with_it(config: PreprocessConfig, tmp_path: Path, tokenizer: Path) -> None:
    """Columns of plain text are datasets of their own, in MindSpeed-LLM too."""
    file = write(tmp_path / "text.jsonl", [{"title": "t", "text": "one"}, {"title": "", "text": "two"}, {"text": ""}])
    keys = {"json_keys": ("title", "text"), "handler_name": "GeneralPretrainHandler", "append_eod": True}
    summary = run(replace(config, input=str(file), **keys))
    loaded = load_tokenizer(tokenizer)
    for key, texts in (("title", ["t"]), ("text", ["one", "two"])):
        found = IndexedColumn(column_path(config.output_prefix, key, packed_name=False))
        assert [found[row].tolist() for row in range(len(found))] == [
            [*loaded.encode(text), loaded.eod_id] for text in texts
        ]
    assert summary.ledger.noted["one of its texts is empty"].count == 1
    assert summary.ledger.dropped["the text is empty"].count == 1


@pytest.mark.parametrize("escapes", [False, True])
def test_special_tokens_of_plain_text(config: PreprocessConfig, tmp_path: Path, tokenizer: Path, escapes: bool) -> None:
    file = write(tmp_path / "text.jsonl", [{"text": "one<|im_end|>"}, {"text": "two"}])
    summary = run(replace(config, input=str(file), escape_special_tokens=escapes))
    loaded = load_tokenizer(tokenizer)
    found = IndexedColumn(column_path(config.output_prefix, "text", packed_name=False))[0].tolist()
    assert found == (loaded.encode_plain if escapes else loaded.encode)("one<|im_end|>")
    assert (loaded.token_id("<|im_end|>") in found) is not escapes
    note = "read as plain text" if escapes else "read as such"
    assert [reason for reason, tally in summary.ledger.noted.items() if note in reason and tally.count == 1]


def test_unused_columns_are_said(config: PreprocessConfig, tmp_path: Path) -> None:
    file = write(tmp_path / "system.jsonl", [{**RECORDS[0], "system": "s"}])
    named = replace(config, input=str(file), handler_name="AlpacaStyleInstructionHandler")
    assert "columns not used: system" in run(named).notices[0]
    assert run(replace(named, handler_name="auto")).notices == ()
    assert "changes nothing" in run(replace(config, prompt_type="qwen", enable_thinking="true")).notices[0]


def test_progress_is_told(config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CHUNK", 10)
    lines: list[str] = []
    preprocess(replace(config, log_interval=20), report=lines.append)
    assert [line.split(",")[0] for line in lines[1:-1]] == ["20 records read", "40 records read"]
    assert lines[0].endswith("in.jsonl: 40 Alpaca (input, instruction, output)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pack": True}, "--pack needs --seq-length"),
        ({"neat_pack": True, "seq_length": 64}, "give --pack with it"),
        ({"seq_length": 1}, "--seq-length 1 is too small"),
        ({"map_keys": "{"}, "--map-keys is not JSON"),
        ({"map_keys": '{"system": "sistem"}'}, "column 'sistem' of --map-keys is in no record"),
        ({"map_keys": '{"prompt": "ask"}'}, "no column 'ask' in .*in.jsonl"),
        ({"handler_name": "AlpacaStyleInstructionHandle"}, "did you mean AlpacaStyleInstructionHandler"),
        ({"handler_name": "GeneralPretrainHandler", "pack": True, "seq_length": 64}, "--pack is for instruction data"),
        ({"prompt_type": "qwen4"}, "--prompt-type qwen4 is not a template"),
        ({"input": "none.jsonl"}, "no such file: none.jsonl"),
        ({"input": ""}, "--input is missing"),
        ({"tokenizer_name_or_path": "none"}, "no tokenizer folder none"),
        (
            {"seq_length": 16, "prompt_type": "qwen"},
            r"no sample is left of the 40 records .*16 tokens or more .*in.jsonl:1",
        ),
    ],
)
def test_refused_before_anything_is_written(config: PreprocessConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(replace(config, **change))
    folder = Path(config.output_prefix).parent
    assert not folder.exists() or not list(folder.iterdir())


def test_no_records(config: PreprocessConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no records in"):
        run(replace(config, input=str(write(tmp_path / "empty.jsonl", []))))


@pytest.mark.parametrize("packing", [{}, {"pack": True, "seq_length": 64}])
def test_a_bad_record_midway_leaves_the_old_dataset(
    config: PreprocessConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: dict[str, Any]
) -> None:
    monkeypatch.setattr(workers, "CHUNK", 5)
    run(config)
    before = digests(config)
    file = write(tmp_path / "bad.jsonl", RECORDS)
    file.write_text(file.read_text() + "{broken\n")
    with pytest.raises(UserError, match="bad.jsonl: line 41 is not JSON"):
        run(replace(config, input=str(file), **packing))
    assert digests(config) == before


def test_a_full_disk(config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: indexed.ColumnWriter, values: np.ndarray, lengths: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(indexed.ColumnWriter, "append", full)
    with pytest.raises(RunError, match="no space left"):
        run(config)
    assert not list(Path(config.output_prefix).parent.iterdir())


MINE = {
    "name": "qwen3",
    "format_user": {"slots": ["<u>{{content}}<a>"]},
    "format_assistant": {"slots": ["{{content}}", ["eos_token"]]},
    "stop_words": ["<bye>"],
}


@pytest.mark.parametrize("count", [1, 2])
def test_a_template_of_the_users_own(config: PreprocessConfig, tmp_path: Path, tokenizer: Path, count: int) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([MINE]), encoding="utf-8")
    summary = run(replace(config, prompt_type_path=str(file), workers=count))
    ids = load_tokenizer(tokenizer).encode("<u>question 0<a>")
    assert column(config, "input_ids")[0][: len(ids)].tolist() == ids
    assert any("another qwen3 than the one built in" in line for line in summary.notices)
    assert any("the tokenizer has no <bye>" in line for line in summary.notices)
    manifest = read_manifest(config.output_prefix)
    assert manifest["template_row"] == MINE
    assert manifest["vocab_size"] == load_tokenizer(tokenizer).vocab_size + 1
    built_in = run(replace(config, output_prefix=str(tmp_path / "other" / "data"))).manifest
    assert built_in["template_row"] is None and built_in["template_sha256"] != manifest["template_sha256"]


def test_special_tokens_are_counted(config: PreprocessConfig, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [*RECORDS, {"instruction": "say <|im_end|>", "input": "", "output": "no"}])
    noted = {name for options in ({}, {"escape_special_tokens": True}) for name in noted_of(config, **options)}
    assert noted == {
        "special tokens in its text, read as such (see --escape-special-tokens)",
        "special tokens in its text, read as plain text",
    }


def noted_of(config: PreprocessConfig, **options: Any) -> dict[str, Any]:
    return run(replace(config, **options)).manifest["ledger"]["noted"]


def test_a_dataset_that_teaches_nothing_is_refused(config: PreprocessConfig) -> None:
    with pytest.raises(UserError, match="no token is learnt in the 40 samples"):
        run(replace(config, seq_length=2))
    assert not list(Path(config.output_prefix).parent.glob("*"))


def test_json_keys_without_plain_text_are_told_to_change_nothing(config: PreprocessConfig) -> None:
    (notice,) = run(replace(config, json_keys=("nowhere",))).notices
    assert "--json-keys nowhere changes nothing" in notice
    assert not run(config).notices
