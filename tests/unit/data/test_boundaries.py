"""Where packed samples end: stored, after a token, or after the mark of --append-eod."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.boundaries import EndOfDocument, StoredBoundaries, WholeRow, choose_boundaries
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.encode import CUT_NOTE
from tests.shared_paths import SHARED, needs_shared
from tests.tiny_dataset import sample, write_dataset

END, LINE, PAD = 9, 8, 7
QWEN, QWEN3 = [END], [END, LINE]


def conversation(turn_end: list[int], turns: int, append_eod: bool) -> tuple[list[int], list[int]]:
    """(ids, labels): prompts close with the template's end of turn too."""
    ids: list[int] = []
    labels: list[int] = []
    for number in range(turns):
        prompt, answer = [10 + number, *turn_end], [20 + number, *turn_end]
        ids += prompt + answer
        labels += [-100] * len(prompt) + answer
    return ids + [END] * append_eod, labels + [END] * append_eod


@pytest.mark.parametrize("turn_end", [QWEN, QWEN3])
@pytest.mark.parametrize("pad", [PAD, END])
@pytest.mark.parametrize("pads", [0, 1, 4])
def test_only_the_appended_mark_ends_a_sample(turn_end: list[int], pad: int, pads: int) -> None:
    parts = [conversation(turn_end, turns, append_eod=True) for turns in (1, 3, 2)]
    ids = sum((part[0] for part in parts), []) + [pad] * pads
    labels = sum((part[1] for part in parts), []) + [-100] * pads
    expected = np.repeat([1, 2, 3, 0], [*(len(part[0]) for part in parts), pads])
    segments = EndOfDocument((*turn_end, END), learnt=True).segments(sample(ids, labels))
    assert segments.tolist() == expected.tolist()


def test_plain_text_ends_after_each_token() -> None:
    source = EndOfDocument((END,), learnt=False)
    assert source.segments(sample([1, END, 2, 3, END, 4], [1, END, 2, 3, END, 4])).tolist() == [1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("end_label", [END, -100])
@pytest.mark.parametrize("pad", [PAD, END])
def test_pads_with_the_id_of_the_token_are_one_segment(end_label: int, pad: int) -> None:
    source = EndOfDocument((END,), learnt=False)
    row = sample([1, END, 2, END, pad, pad, pad], [1, end_label, 2, end_label, -100, -100, -100])
    assert source.segments(row).tolist() == [1, 1, 2, 2, 0, 0, 0]


def test_rows_shorter_than_the_mark() -> None:
    source = EndOfDocument((END, LINE, END), learnt=True)
    assert source.segments(sample([END], [END])).tolist() == [1]
    assert source.segments(sample([], [])).tolist() == []


def test_typed_marks_in_a_prompt_do_not_count() -> None:
    source = EndOfDocument((END, END), learnt=True)
    assert source.segments(sample([1, END, END, 2], [-100, -100, -100, 2])).tolist() == [1, 1, 1, 1]


def packed(prefix: Path, append_eod: bool, manifest: dict | None, turns: int = 2) -> InstructionDataset:
    ids, labels = conversation(QWEN, turns, append_eod)
    return InstructionDataset(write_dataset(prefix, [sample(ids + [PAD], labels + [-100])] * 3, manifest))


def test_choice(tmp_path: Path) -> None:
    stored = write_dataset(tmp_path / "stored", [sample([1, 2, 3], [1, 2, 3], [1, 2, 0])])
    assert choose_boundaries(InstructionDataset(stored), END, QWEN) == StoredBoundaries()
    marked = packed(tmp_path / "marked", True, None)
    assert choose_boundaries(marked, END, QWEN) == EndOfDocument((END, END), learnt=True)
    separate = packed(tmp_path / "separate", False, {"pack": False})
    assert choose_boundaries(separate, END, QWEN) == WholeRow()
    assert WholeRow().segments(separate[0]).tolist() == [1] * len(separate[0])
    one_answer = packed(tmp_path / "one", False, None, turns=1)
    assert choose_boundaries(one_answer, END, QWEN) == EndOfDocument((END, END), learnt=True)
    text = packed(tmp_path / "text", True, None)
    assert choose_boundaries(text, END, []) == EndOfDocument((END,), learnt=False)


@pytest.mark.parametrize("manifest", [None, {"pack": True}])
@pytest.mark.parametrize("pad", [PAD, END])
def test_rows_without_a_mark_are_refused(tmp_path: Path, manifest: dict | None, pad: int) -> None:
    ids, labels = conversation(QWEN, 2, append_eod=False)
    row = sample(ids + [pad] * 3, labels + [-100] * 3)
    dataset = InstructionDataset(write_dataset(tmp_path / "data", [row], manifest))
    with pytest.raises(UserError, match="does not say where .* prepare it again with --neat-pack"):
        choose_boundaries(dataset, END, QWEN)


def test_samples_that_were_cut_have_lost_their_mark(tmp_path: Path) -> None:
    ledger = {"noted": {CUT_NOTE: {"count": 2, "first": ["a"]}}}
    dataset = packed(tmp_path / "data", True, {"pack": True, "ledger": ledger})
    with pytest.raises(UserError, match="2 of its samples were cut .* --neat-pack"):
        choose_boundaries(dataset, END, QWEN)


@needs_shared
def test_mindspeed_llm_datasets() -> None:
    """--append-eod and neat-pack rows of the reference itself, whose end of turn is the end of document."""
    assert SHARED is not None
    golden, end = SHARED / "golden" / "mindspeed_llm", 151645
    tokenizer = json.loads((SHARED / "tokenizer" / "qwen3" / "tokenizer.json").read_text(encoding="utf-8"))
    system = tokenizer["model"]["vocab"]["system"]
    for case, kind in (("v14_append_eod_pack1024", EndOfDocument), ("v07_alpaca_qwen_neatpack2048", StoredBoundaries)):
        dataset = InstructionDataset(golden / case / "data")
        source = choose_boundaries(dataset, end, [end])
        assert isinstance(source, kind)
        for row in (dataset[number] for number in range(len(dataset))):
            starts = np.flatnonzero(np.diff(source.segments(row), prepend=-1))
            opened = np.flatnonzero((row.input_ids[1:] == system) & (row.input_ids[:-1] == 151644))
            pads = row.input_ids[-1] == 151643
            assert starts[: len(starts) - int(pads)].tolist() == opened.tolist(), case
