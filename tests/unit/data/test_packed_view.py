"""Rows of a pack index are those that the data would have had, had it been packed when it was prepared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.tuning import TrainingDataFlags
from mindspeed_ift.data.batch import Packed
from mindspeed_ift.data.boundaries import choose_boundaries
from mindspeed_ift.data.dataset import InstructionDataset, Samples
from mindspeed_ift.data.encode import CUT_NOTE
from mindspeed_ift.data.micro_batches import MicroBatches
from mindspeed_ift.data.order import SampleOrder
from mindspeed_ift.data.pack_index import build_index, load_index
from mindspeed_ift.data.packed_rows import rules_of
from mindspeed_ift.data.packed_view import PackedView, packed_samples
from mindspeed_ift.data.packing import PackRules
from mindspeed_ift.data.preprocess import Summary, preprocess
from tests.tiny_dataset import sample, write_dataset
from tests.tiny_tokenizer import make_tiny_tokenizer

Prepare = Callable[..., tuple[str, Summary]]


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    """Prepares 60 conversations of one to four turns, some longer than 100 tokens, with given options."""
    folder = tmp_path_factory.mktemp("view")
    make_tiny_tokenizer(folder / "tokenizer")
    random = np.random.default_rng(0)
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(60):
            texts = ["one two " * int(random.integers(1, 20)) for _ in range(2 * int(random.integers(1, 5)))]
            messages = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 4, texts)]
            file.write(json.dumps({"messages": messages}) + "\n")

    def run(name: str, **options: object) -> tuple[str, Summary]:
        config = PreprocessConfig(
            input=str(folder / "records.jsonl"),
            output_prefix=str(folder / name),
            tokenizer_name_or_path=str(folder / "tokenizer"),
        )
        config = replace(config, **options)
        return config.output_prefix, preprocess(config, report=lambda line: None)

    return run


def view_of(prefix: str, rules: PackRules) -> PackedView:
    dataset = InstructionDataset(prefix)
    return PackedView(dataset, build_index(dataset, rules), dataset.manifest["pad_id"])


def batches(samples: Samples, length: int) -> MicroBatches:
    manifest = samples.manifest
    boundaries = choose_boundaries(samples, manifest["eod_id"], manifest["turn_end_ids"])
    mode = Packed(length, manifest["pad_id"], boundaries, reset_position_ids=True)
    return MicroBatches(samples, range(len(samples)), SampleOrder(len(samples), seed=5), mode, 2)


@pytest.mark.parametrize("template", ["qwen", "qwen3", "alpaca", "mindspeed_moss"])
@pytest.mark.parametrize(
    "options",
    [
        {"seq_length": 100},
        {"seq_length": 61, "append_eod": True},
        {"seq_length": 128, "packing_algorithm": "best-fit", "pad_to_multiple_of": 16},
        {"seq_length": 300, "packing_algorithm": "sequential", "max_segments": 4, "append_eod": True},
    ],
    ids=["knapsack", "end of document", "aligned best fit", "sequential"],
)
def test_training_on_a_view_is_training_on_packed_data(
    prepare: Prepare, template: str, options: dict[str, object]
) -> None:
    kept = {name: options[name] for name in ("append_eod",) if name in options}
    plain, _ = prepare(f"plain_{template}", prompt_type=template, **kept)
    packed, summary = prepare(f"packed_{template}", prompt_type=template, pack=True, neat_pack=True, **options)
    view = view_of(plain, rules_of(PreprocessConfig(**options)))
    rows = InstructionDataset(packed)
    assert len(view) == len(rows) and np.array_equal(view.lengths, rows.lengths)
    for number in range(len(rows)):
        for name in ("input_ids", "labels", "segments"):
            found, expected = (getattr(one[number], name) for one in (view, rows))
            assert found.dtype == expected.dtype and np.array_equal(found, expected), (number, name)
    cut = view.index.cut_samples
    assert cut == summary.ledger.as_dict()["noted"].get(CUT_NOTE, {}).get("count", 0)
    assert cut > 0 or options["seq_length"] == 300
    length = int(options["seq_length"])
    for consumed in (0, 40):
        for found, expected in zip(batches(view, length).take(consumed, 4), batches(rows, length).take(consumed, 4)):
            for name in ("tokens", "labels", "loss_mask", "position_ids", "boundaries"):
                assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("length", range(30, 90, 7))
def test_a_cut_sample_fills_what_a_row_takes(prepare: Prepare, length: int) -> None:
    view = view_of(prepare("filled", prompt_type="qwen")[0], PackRules(length))
    fitting = [int((view[row].segments > 0).sum()) for row in range(len(view))]
    assert fitting == np.add.reduceat(view.index.taken, view.index.packs.starts[:-1]).tolist()


def test_an_index_is_read_as_it_was_written(prepare: Prepare, tmp_path: Path) -> None:
    dataset = InstructionDataset(prepare("written")[0])
    index = build_index(dataset, PackRules(100, "best-fit", 40, seed=7), "drop")
    assert index.dropped_samples > 0 and index.cut_samples == 0
    path = tmp_path / "index.npz"
    index.save(path)
    found = load_index(path, dataset)
    assert found.facts() == index.facts() and found.describe() == index.describe()
    for name in ("samples", "starts"):
        assert np.array_equal(getattr(found.packs, name), getattr(index.packs, name))
    assert np.array_equal(found.taken, index.taken)
    first = path.read_bytes()
    build_index(dataset, PackRules(100, "best-fit", 40, seed=7), "drop").save(path)
    assert path.read_bytes() == first and list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_refused(prepare: Prepare, tmp_path: Path) -> None:
    index = build_index(InstructionDataset(prepare("placed")[0]), PackRules(100))
    index.save(tmp_path / "made" / "on the way" / "index.npz")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write .* choose another --output"):
        index.save(tmp_path / "file" / "index.npz")


def test_other_rules_have_an_index_of_their_own(prepare: Prepare) -> None:
    dataset = InstructionDataset(prepare("rules")[0])
    rules = [PackRules(100), PackRules(128), PackRules(128, "sequential"), PackRules(128, multiple=8)]
    paths = {build_index(dataset, one).path("p") for one in rules} | {build_index(dataset, rules[0], "drop").path("p")}
    assert len(paths) == 5


def test_an_index_of_another_dataset_is_refused(prepare: Prepare, tmp_path: Path) -> None:
    path = tmp_path / "index.npz"
    build_index(InstructionDataset(prepare("old")[0]), PackRules(100)).save(path)
    with pytest.raises(UserError, match="written for another dataset .* repack_dataset.py"):
        load_index(path, InstructionDataset(prepare("new", prompt_type="qwen3")[0]))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x93NUMPY", b'{"format": 1}', None])
def test_a_file_that_is_no_index_is_refused(prepare: Prepare, tmp_path: Path, content: bytes | None) -> None:
    path, dataset = tmp_path / "index.npz", InstructionDataset(prepare("whole")[0])
    if content is None:
        np.savez(path, other=np.zeros(3))
    else:
        path.write_bytes(content)
    expected = "is no pack index" if content is not None else r"cannot be read as a pack index \(.*\); write it with"
    with pytest.raises(UserError, match=expected):
        load_index(path, dataset)
    with pytest.raises(UserError, match="no such file"):
        load_index(tmp_path / "none.npz", dataset)


def test_an_index_cut_short_is_refused(prepare: Prepare, tmp_path: Path) -> None:
    dataset, path = InstructionDataset(prepare("short")[0]), tmp_path / "index.npz"
    build_index(dataset, PackRules(100)).save(path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="is no pack index, or cut off|cannot be read as a pack index"):
            load_index(path, dataset)


def test_packed_rows_are_not_packed_again(prepare: Prepare) -> None:
    dataset = InstructionDataset(prepare("twice", pack=True, seq_length=200)[0])
    with pytest.raises(UserError, match="is packed already"):
        build_index(dataset, PackRules(400))
    flags = TrainingDataFlags(seq_length=200, pack=True)
    assert packed_samples(dataset, flags, seed=1, pad_id=0) is dataset


@pytest.mark.parametrize(("segments", "packed"), [(None, False), ([1, 1, 2], True)])
def test_without_a_manifest_the_data_tell(tmp_path: Path, segments: list[int] | None, packed: bool) -> None:
    rows = [sample([5, 6, 7], [-100, 6, 7], segments), sample([5, 6], [-100, 6], segments and segments[1:])]
    assert InstructionDataset(write_dataset(tmp_path / "data", rows)).is_packed is packed
    assert InstructionDataset(write_dataset(tmp_path / "data", rows[:1] * 3)).is_packed


def test_samples_must_not_see_each_other(prepare: Prepare) -> None:
    dataset = InstructionDataset(prepare("seen")[0])
    with pytest.raises(UserError, match="--pack makes rows .* give --reset-attention-mask"):
        packed_samples(dataset, TrainingDataFlags(seq_length=100, pack=True), seed=1, pad_id=0)


def test_too_long_samples_can_be_refused(prepare: Prepare) -> None:
    dataset = InstructionDataset(prepare("refused")[0])
    flags = TrainingDataFlags(seq_length=100, pack=True, reset_attention_mask=True, cut_token=False)
    with pytest.raises(UserError, match="sample .* and a row of --seq-length 100 takes 99; give .* cut or left out"):
        packed_samples(dataset, flags, seed=1, pad_id=0)
    with pytest.raises(UserError, match="no sample is left to pack"):
        build_index(dataset, PackRules(3), "drop")


def test_an_index_takes_the_place_of_an_index_only(prepare: Prepare, tmp_path: Path) -> None:
    index = build_index(InstructionDataset(prepare("kept")[0]), PackRules(400))
    (tmp_path / "records.jsonl").write_text("mine")
    with pytest.raises(UserError, match="records.jsonl is there and is no pack index; give another name"):
        index.save(tmp_path / "records.jsonl")
    assert (tmp_path / "records.jsonl").read_text() == "mine"
    index.save(tmp_path / "new.npz")
    index.save(tmp_path / "new.npz")
