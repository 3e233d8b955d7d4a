"""Documents of every kind of dataset, taken apart into samples and pads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.merge import MergeConfig
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.indexed import manifest_path
from mindspeed_ift.data.ledger_file import join_ledgers, ledger_path
from mindspeed_ift.data.merging import merge
from mindspeed_ift.data.pack_index import build_index
from mindspeed_ift.data.packing import PackRules
from mindspeed_ift.data.preprocess import preprocess
from mindspeed_ift.data.show.opening import ShownDataset
from mindspeed_ift.data.show.origins import told
from mindspeed_ift.data.show.page import write_page
from mindspeed_ift.data.show.survey import survey
from mindspeed_ift.data.show.terminal import lines
from mindspeed_ift.data.tokenizer import load_tokenizer
from tests.shared_paths import SHARED, needs_shared
from tests.tiny_dataset import sample, write_dataset
from tests.tiny_tokenizer import make_tiny_tokenizer

RECORDS = [{"instruction": f"question {number}", "output": "one two three " * number} for number in range(1, 9)]


@pytest.fixture
def config(tmp_path: Path, tokenizer: Path) -> PreprocessConfig:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return PreprocessConfig(
        input=str(tmp_path / "in.jsonl"),
        output_prefix=str(tmp_path / "data"),
        tokenizer_name_or_path=str(tokenizer),
        prompt_type="qwen3",
    )


def prepared(config: PreprocessConfig, **options: Any) -> str:
    preprocess(replace(config, **options), report=lambda line: None)
    return config.output_prefix


def texts(dataset: ShownDataset) -> list[str]:
    """Text of every sample."""
    parts = [part for number in range(len(dataset)) for part in dataset[number].parts()]
    return [dataset.tokenizer.decode(part.input_ids) for part in parts if part.number]


def origins_and_texts(dataset: ShownDataset) -> list[tuple[str, str]]:
    """Where every sample comes from, and its text, in the order of the records."""
    samples = []
    for number in range(len(dataset)):
        parts = [part for part in dataset[number].parts() if part.number]
        origins = [told(dataset.origins(number), part.number, len(parts)) for part in parts]
        samples += [(origin, dataset.tokenizer.decode(part.input_ids)) for origin, part in zip(origins, parts)]
    return sorted(samples)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pack": True, "neat_pack": True, "seq_length": 64},
        {"pack": True, "neat_pack": True, "seq_length": 64, "pad_to_multiple_of": 8, "packing_algorithm": "best-fit"},
        {"pack": True, "append_eod": True, "seq_length": 64},
    ],
    ids=["not packed", "neatly packed", "packed in multiples", "packed with marks"],
)
def test_samples_are_told_apart(config: PreprocessConfig, options: dict[str, Any]) -> None:
    dataset = ShownDataset(prepared(config, **options))
    found = texts(dataset)
    assert len(found) == len(RECORDS) and dataset.notice == ""
    assert all(text.startswith("<|im_start|>user\nquestion") and text.count("<|im_start|>user") == 1 for text in found)
    for number in range(len(dataset)):
        document = dataset[number]
        parts = list(document.parts())
        assert sum(len(part.input_ids) for part in parts) == len(document.input_ids)
        assert [part.number for part in parts if part.number] == list(range(1, 1 + sum(p.number > 0 for p in parts)))
        assert all(not part.learnt.any() for part in parts if not part.number)
    for line, (origin, text) in enumerate(origins_and_texts(dataset), 1):
        assert origin == f"{config.input}:{line}" and text.startswith(f"<|im_start|>user\nquestion {line}<")


def test_rows_without_stored_borders_are_shown_whole(config: PreprocessConfig) -> None:
    # Qwen's turns end in the end-of-document token, so that a row of several answers has no border to go by.
    dataset = ShownDataset(prepared(config, pack=True, seq_length=64))
    assert "does not say where samples end" in dataset.notice
    assert [part.number for part in dataset[0].parts()] == [1, 0]
    fullest = max(range(len(dataset)), key=lambda number: len(dataset.origins(number)))
    origins = dataset.origins(fullest)
    assert len(origins) > 1 and told(origins, 1, 1) == ", ".join(origins)
    whole = dataset.tokenizer.decode(dataset[fullest].input_ids)
    places = [whole.index(f"question {origin.rpartition(':')[2]}<") for origin in origins]
    assert places == sorted(places), "in the order in which they stand"
    assert told(["a:1"] * 9, 1, 2) == ", ".join(["a:1"] * 8) + ", ..." and told([], 1, 1) == ""


@pytest.mark.parametrize("options", [{}, {"pack": True, "neat_pack": True, "seq_length": 64}])
def test_a_dataset_without_manifest_needs_the_tokenizer(
    config: PreprocessConfig, tokenizer: Path, options: dict[str, Any]
) -> None:
    prefix = prepared(config, **options)
    expected = texts(ShownDataset(prefix))
    manifest_path(prefix).unlink()
    with pytest.raises(UserError, match="does not name its tokenizer; give --tokenizer-name-or-path"):
        ShownDataset(prefix)
    assert texts(ShownDataset(prefix, str(tokenizer))) == expected


def test_pads_at_the_end_are_found_without_manifest(config: PreprocessConfig, tokenizer: Path) -> None:
    prefix = prepared(config, pack=True, seq_length=64)
    manifest_path(prefix).unlink()
    last = list(ShownDataset(prefix, str(tokenizer))[0].parts())[-1]
    assert last.number == 0 and set(last.input_ids.tolist()) == {load_tokenizer(tokenizer).pad_id}


def test_pairs_are_shown_side_by_side(config: PreprocessConfig, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"instruction": "q", "chosen": "good", "rejected": "bad one"}\n' * 2)
    dataset = ShownDataset(prepared(config, handler_name="AlpacaStylePairwiseHandler"))
    better, worse = dataset[1].parts()
    assert (dataset.name(better), dataset.name(worse)) == ("chosen", "rejected")
    learnt = [dataset.tokenizer.decode(part.input_ids[part.learnt]) for part in (better, worse)]
    assert learnt == ["good<|im_end|>\n", "bad one<|im_end|>\n"]
    found = survey(dataset)
    assert found.document.tolist() == [0, 0, 1, 1] and found.row.tolist() == dataset.lengths.tolist()
    assert dataset.origins(1) == [f"{tmp_path}/in.jsonl:2"]
    heading = next(iter(lines(dataset, dataset[1], coloured=False)))
    assert str(heading).endswith(f"learnt, from {tmp_path}/in.jsonl:2")


def test_rows_of_a_pack_index(config: PreprocessConfig, tmp_path: Path) -> None:
    prefix = prepared(config)
    path = tmp_path / "rows.packs"
    samples = InstructionDataset(prefix)
    build_index(samples, PackRules(64), "error").save(path)
    dataset = ShownDataset(prefix, pack_index=path)
    assert sorted(texts(dataset)) == sorted(texts(ShownDataset(prefix))) and len(dataset) < len(samples)
    assert set(dataset.lengths.tolist()) == {64}
    assert origins_and_texts(dataset) == origins_and_texts(ShownDataset(prefix))
    with pytest.raises(UserError, match="--pack-index none: no such file"):
        ShownDataset(prefix, pack_index=Path("none"))


def test_a_document_tells_the_record_it_was_made_of(config: PreprocessConfig, tmp_path: Path) -> None:
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write('{"instruction": "no answer"}\n{"instruction": "last", "output": "one"}\n')
    dataset = ShownDataset(prepared(config, max_drop_fraction=0.5))
    assert [dataset.origins(number) for number in (0, 7, 8)] == [[f"{tmp_path}/in.jsonl:{line}"] for line in (1, 8, 10)]
    ledger_path(dataset.prefix).unlink()
    assert ShownDataset(dataset.prefix).origins(0) == []


def test_where_samples_of_rows_are_from_is_shown(config: PreprocessConfig, tmp_path: Path) -> None:
    """In a terminal and on a page; of a record that was split, and of rows that were merged."""
    packing = {"pack": True, "neat_pack": True, "seq_length": 64}
    twice = {"instruction": "question 9", "output": "one " * 9, "history": [["question 9", "two " * 9]]}
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write(json.dumps(twice) + "\n")
    prefix = prepared(config, **packing, overlong="split")
    dataset = ShownDataset(prefix)
    shown = [str(line) for number in range(len(dataset)) for line in lines(dataset, dataset[number], coloured=False)]
    headings = [line for line in shown if line.startswith(("-- sample", "document"))]
    for origin, text in origins_and_texts(dataset):
        number = origin.rpartition(":")[2]
        assert f"question {number}<" in text
        assert sum(line.endswith(f"from {origin}") for line in headings) == 1 + (number == "9")
    write_page(dataset, [0], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(f"learnt, from {origin}" in page for origin in dataset.origins(0))
    other = str(tmp_path / "other")
    prepared(config, **packing, output_prefix=other, max_samples=3)
    merge(MergeConfig(input=(other, prefix), output_prefix=str(tmp_path / "whole")))
    merged = ShownDataset(str(tmp_path / "whole"))
    rows = [ShownDataset(other), dataset]
    assert [merged.origins(n) for n in range(len(merged))] == [one.origins(n) for one in rows for n in range(len(one))]


def test_a_ledger_that_does_not_tell_places(config: PreprocessConfig, tmp_path: Path) -> None:
    """Of an earlier version, of another dataset, or joined with such a one."""
    prefix = prepared(config, pack=True, neat_pack=True, seq_length=64)
    ledger = parquet.read_table(ledger_path(prefix))
    old = ledger.drop_columns(["rows", "positions"])
    for table in (ledger.slice(1), old):
        if table.num_rows < ledger.num_rows:
            table = table.set_column(
                8, "rows", pyarrow.array([[99]] * table.num_rows, ledger.schema.field("rows").type)
            )
        parquet.write_table(table, ledger_path(prefix))
        assert ShownDataset(prefix).origins(0) == []
    other = tmp_path / "new.parquet"
    parquet.write_table(ledger, other)
    for order in ((other, ledger_path(prefix)), (ledger_path(prefix), other)):
        join_ledgers([(path, 3) for path in order], tmp_path / "joined.parquet")
        joined = parquet.read_table(tmp_path / "joined.parquet")
        assert joined.column_names == old.column_names and joined.num_rows == 2 * ledger.num_rows


def test_plain_text_is_learnt_whole(config: PreprocessConfig, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "one", "more": "two"}\n')
    prefix = prepared(config, handler_name="GeneralPretrainHandler")
    (part,) = ShownDataset(prefix)[0].parts()
    assert texts(ShownDataset(prefix)) == ["one"] and part.learnt.all()
    prepared(config, handler_name="GeneralPretrainHandler", json_keys=("text", "more"))
    with pytest.raises(UserError, match="several columns .more, text.; show one, for example .*data_more_document"):
        ShownDataset(prefix)
    assert texts(ShownDataset(f"{prefix}_more_document")) == ["two"]
    assert texts(ShownDataset(f"{prefix}_text_document.idx")) == ["one"]


def test_stop_words_that_the_tokenizer_lacks_have_text(config: PreprocessConfig, tmp_path: Path) -> None:
    row = {"name": "mine", "format_user": {"slots": ["{{content}}"]}, "stop_words": ["<bye>"], "replace_eos": True}
    (tmp_path / "mine.json").write_text(json.dumps([row]))
    prefix = prepared(config, prompt_type="mine", prompt_type_path=str(tmp_path / "mine.json"))
    assert texts(ShownDataset(prefix))[0].endswith("<bye>")


def test_another_tokenizer_is_refused(config: PreprocessConfig, tmp_path: Path, tokenizer: Path) -> None:
    prefix = prepared(config)
    other = make_tiny_tokenizer(tmp_path / "other")
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace("<|im_start|>", "<|im_begin|>"))
    with pytest.raises(UserError, match="was prepared with another tokenizer than"):
        ShownDataset(prefix, str(other))
    manifest = json.loads(manifest_path(prefix).read_text())
    assert manifest["tokenizer"] == str(tokenizer)
    manifest_path(prefix).write_text(json.dumps({**manifest, "tokenizer": str(tmp_path / "gone")}))
    with pytest.raises(UserError, match="is not at .*gone any more; give its folder with --tokenizer-name-or-path"):
        ShownDataset(prefix)


def test_a_row_of_pads_alone(tmp_path: Path, tokenizer: Path) -> None:
    pad = load_tokenizer(tokenizer).pad_id
    dataset = ShownDataset(str(write_dataset(tmp_path / "data", [sample([pad] * 3, [-100] * 3)])), str(tokenizer))
    assert [str(line) for line in lines(dataset, dataset[0], coloured=False)] == [
        "document 0: 0 samples, 3 tokens, 0 learnt",
        "[3 pads]",
    ]


def test_ids_that_the_tokenizer_does_not_have_are_shown_as_numbers(tmp_path: Path, tokenizer: Path) -> None:
    """Such as the pads of MindSpeed-LLM's plain text, and all the ids of another tokenizer's data."""
    ids = [*load_tokenizer(tokenizer).encode("one"), 9999, -7, *load_tokenizer(tokenizer).encode(" two")]
    prefix = write_dataset(tmp_path / "data", [sample(ids, [-100] * len(ids))])
    dataset = ShownDataset(str(prefix), str(tokenizer))
    assert "".join(dataset.pieces(dataset[0].input_ids)) == "one<9999><-7> two"
    write_page(dataset, [0], tmp_path / "page.html")
    assert "&lt;9999&gt;" in (tmp_path / "page.html").read_text()


def test_a_damaged_ledger_is_named(config: PreprocessConfig) -> None:
    dataset = ShownDataset(prepared(config))
    ledger_path(dataset.prefix).write_bytes(b"PAR1")
    with pytest.raises(UserError, match="data.ledger.parquet cannot be read"):
        dataset.origins(0)


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dataset at"):
        ShownDataset(str(tmp_path / "none"))


@needs_shared
@pytest.mark.parametrize(
    "case", ["v01_alpaca_qwen_default", "v06_alpaca_qwen_pack2048", "v07_alpaca_qwen_neatpack2048"]
)
def test_datasets_of_mindspeed_llm(case: str, tmp_path: Path) -> None:
    assert SHARED is not None
    for file in (SHARED / "golden" / "mindspeed_llm" / case).glob("data_*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    mask = tmp_path / "data_packed_attention_mask_document.bin"
    if not mask.is_file():  # all ones are not kept
        ids = np.fromfile(tmp_path / "data_packed_input_ids_document.bin", "<i4")
        np.ones_like(ids).tofile(mask)
    dataset = ShownDataset(str(tmp_path / "data"), str(SHARED / "tokenizer" / "qwen3"))
    found = texts(dataset)
    assert found and all(text.startswith("<|im_start|>system\n") for text in found)
    if "neat" in case:
        assert all(text.count("<|im_start|>system") == 1 for text in found) and len(found) > len(dataset)
