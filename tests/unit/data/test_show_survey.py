"""Figures of a dataset, against counting by hand; what is strange and what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mindspeed_ift.data.sample import Sample
from mindspeed_ift.data.show import survey as survey_module
from mindspeed_ift.data.show.opening import ShownDataset
from mindspeed_ift.data.show.survey import oddities, survey
from mindspeed_ift.data.tokenizer import load_tokenizer
from tests.tiny_dataset import random_sample, sample, write_dataset


def shown(tmp_path: Path, tokenizer: Path, samples: list[Sample], neat: bool = False) -> ShownDataset:
    facts = {"pack": neat, "neat_pack": neat, "tokenizer": str(tokenizer)}
    return ShownDataset(str(write_dataset(tmp_path / "data", samples, facts)))


@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
def test_figures_of_packed_rows(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(survey_module, "_TOKENS_AT_ONCE", at_once)
    rows = [
        sample([11, 12, 13, 14, 15, 0], [-100, 12, -100, -100, 15, -100], [1, 1, 2, 2, 2, 0]),
        sample([21, 22, 23, 24], [-100, -100, -100, 24], [1, 2, 2, 2]),
        sample([31], [31], [1]),
    ]
    found = survey(shown(tmp_path, tokenizer, rows, neat=True))
    assert found.document.tolist() == [0, 0, 1, 1, 2]
    assert found.place.tolist() == [1, 2, 1, 2, 1]
    assert found.length.tolist() == [2, 3, 1, 3, 1]
    assert found.learnt.tolist() == [1, 1, 0, 1, 1]
    assert found.row.tolist() == [6, 4, 1] and found.filled.tolist() == [5, 4, 1]
    assert found.share.tolist() == [0.5, 1 / 3, 0, 1 / 3, 1]
    assert found.longest(2).tolist() == [1, 3]


def test_figures_do_not_depend_on_the_blocks(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    dataset = shown(tmp_path, tokenizer, [random_sample(generator, 3, vocabulary=12) for _ in range(50)])
    whole = survey(dataset)
    monkeypatch.setattr(survey_module, "_TOKENS_AT_ONCE", 40)
    for name, values in vars(survey(dataset)).items():
        assert np.array_equal(values, getattr(whole, name)), name
    for number in range(50):
        row = dataset[number]
        assert whole.run[number] == longest_run(row.input_ids.tolist()) and whole.learnt[number] == row.learnt.sum()


def longest_run(ids: list[int]) -> int:
    """By hand: the longest stretch that goes on with a period of one to eight."""
    longest = 0
    for period in range(1, 9):
        run = 0
        for before, token in zip(ids, ids[period:]):
            run = run + 1 if before == token else 0
            longest = max(longest, run + period if run else 0)
    return longest


def ordinary(count: int = 40) -> list[Sample]:
    generator = np.random.default_rng(1)
    return [random_sample(generator, 4) for _ in range(count)]


def test_nothing_is_strange_of_ordinary_samples(tmp_path: Path, tokenizer: Path) -> None:
    assert oddities(survey(shown(tmp_path, tokenizer, ordinary()))) == []


def test_what_is_strange(tmp_path: Path, tokenizer: Path) -> None:
    replacement = load_tokenizer(tokenizer).encode("\ufffd\ufffd x \ufffd\ufffd")
    generator = np.random.default_rng(2)
    mixed = generator.integers(10, 50, 400).tolist()
    strange = [
        sample([11, 12, 13], [-100, -100, -100]),
        sample(mixed[:300], [-100] * 298 + mixed[298:300]),
        sample([9, *replacement, 8], [-100, *replacement, 8]),
        sample([9, *[7, 8] * 60], [-100, *[7, 8] * 60]),
        sample(mixed * 50, [-100] * 400 + mixed * 49),
    ]
    dataset = shown(tmp_path, tokenizer, [*ordinary(300), *strange])
    found = {
        case.name: (case.samples.tolist(), case.detail(int(case.samples[0]))) for case in oddities(survey(dataset))
    }
    assert found["nothing of it is learnt"] == ([300], "0 of 3 tokens")
    assert found["nearly nothing or nearly all of it is learnt"] == ([301, 303], "0.7% learnt")
    assert found["replacement characters: text was lost before"] == ([302], "4 times \ufffd")
    assert found["a long run that repeats itself"] == ([303], "120 tokens")
    assert found["a rare length"][0][0] == 304 and found["a rare length"][1] == "20,000 tokens"


def test_learning_everything_is_not_strange_where_all_do(tmp_path: Path, tokenizer: Path) -> None:
    """As with --train-on-prompt, or plain text."""
    found = survey(shown(tmp_path, tokenizer, [sample(row.input_ids, row.input_ids) for row in ordinary()]))
    assert oddities(found) == []
