"""Several datasets become one stream: the order of Hugging Face's ``interleave_datasets``, read one record ahead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.inputs import find_datasets
from mindspeed_ift.data.mixing import Mixture, Source, read_datasets

SIZES = (3, 7, 12)


def sources(sizes: tuple[int, ...] = SIZES, most: int | None = None) -> list[Source[str]]:
    def reader(number: int, size: int) -> Source[str]:
        return Source(f"d{number}", lambda: iter([f"{number}.{record}" for record in range(size)]), most)

    return [reader(number, size) for number, size in enumerate(sizes)]


def mixture(sizes: tuple[int, ...] = SIZES, most: int | None = None, **config: Any) -> Mixture[str]:
    return Mixture(sources(sizes, most), PreprocessConfig(**config))


def of_hugging_face(strategy: str, probabilities: list[float] | None, seed: int) -> list[str]:
    datasets = pytest.importorskip("datasets", reason="compares with Hugging Face's datasets")
    parts = [
        datasets.Dataset.from_dict({"text": [f"{number}.{record}" for record in range(size)]})
        for number, size in enumerate(SIZES)
    ]
    mixed = datasets.interleave_datasets(parts, probabilities, seed=seed, stopping_strategy=strategy)
    return list(mixed["text"])


def test_one_after_the_other() -> None:
    assert list(mixture((2, 1))) == ["0.0", "0.1", "1.0"]


def test_in_turn() -> None:
    assert list(mixture((2, 3), mix_strategy="interleave_under")) == ["0.0", "1.0", "0.1", "1.1"]
    assert list(mixture((2, 3), mix_strategy="interleave_over")) == ["0.0", "1.0", "0.1", "1.1", "0.0", "1.2"]


@pytest.mark.parametrize("probabilities", [None, [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
@pytest.mark.parametrize("seed", [0, 1234])
@pytest.mark.parametrize(
    ("strategy", "theirs"), [("interleave_under", "first_exhausted"), ("interleave_over", "all_exhausted")]
)
def test_the_order_of_hugging_face(strategy: str, theirs: str, probabilities: list[float] | None, seed: int) -> None:
    given = "" if probabilities is None else ",".join(map(str, probabilities))
    ours = mixture(mix_strategy=strategy, interleave_probs=given, seed=seed)
    assert list(ours) == of_hugging_face(theirs, probabilities, seed)


def test_many_draws_as_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than it draws at a time."""
    monkeypatch.setattr(f"{__name__}.SIZES", (3, 900, 2500))
    ours = Mixture(sources(SIZES), PreprocessConfig(mix_strategy="interleave_over", interleave_probs="0.1,0.3,0.6"))
    assert list(ours) == of_hugging_face("all_exhausted", [0.1, 0.3, 0.6], 1234)


def test_a_part_of_each() -> None:
    assert list(mixture((5, 1), most=2)) == ["0.0", "0.1", "1.0"]
    assert list(mixture((5, 1), most=2, mix_strategy="interleave_over")) == ["0.0", "1.0", "0.1", "1.0"]


def test_what_was_not_taken_whole_is_said() -> None:
    under = mixture((2, 9), mix_strategy="interleave_under")
    assert len(list(under)) == 4
    (line,) = under.notices()
    assert line.startswith("d1: 2 records taken, the rest left out")
    over = mixture((2, 9), mix_strategy="interleave_over")
    assert len(list(over)) == 18
    (line,) = over.notices()
    assert line.startswith("d0: 9 records taken, its records up to 5 times")
    part = mixture((2, 9), most=4)
    assert len(list(part)) == 6
    assert list(part.notices()) == ["d1: 4 records taken, which is all that --max-samples allows"]
    whole = mixture((2, 9))
    assert len(list(whole)) == 11 and not list(whole.notices())


def test_is_read_one_record_ahead() -> None:
    read = 0

    def endless() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    mixed = Mixture([Source("a", endless), Source("b", endless)], PreprocessConfig(mix_strategy="interleave_under"))
    stream = iter(mixed)
    taken = [next(stream) for _ in range(10)]
    assert len(taken) == 10 and read <= 12


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mix_strategy": "interleave_under"}, "--mix-strategy interleave_under mixes several datasets.*d0"),
        ({"mix_strategy": "interleave_over", "interleave_probs": "0.5,0.5"}, "--mix-strategy interleave_over mixes"),
    ],
)
def test_one_dataset_is_not_mixed(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mixture((3,), **config)


def test_a_probability_for_each_dataset() -> None:
    with pytest.raises(UserError, match="2 numbers for 3 datasets of --input .d0, d1, d2.; give one for each"):
        mixture(mix_strategy="interleave_over", interleave_probs="0.5,0.5")


def test_an_empty_dataset_is_not_interleaved() -> None:
    with pytest.raises(UserError, match="no records in d1.*leave it out"):
        list(mixture((3, 0), mix_strategy="interleave_over"))
    assert list(mixture((1, 0))) == ["0.0"]


def test_parts_of_the_input_are_datasets(tmp_path: Path) -> None:
    for name, count in (("a", 2), ("b", 3)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"n": "{name}{number}"}}\n' for number in range(count)))
    datasets = find_datasets(f"{tmp_path}/a.jsonl, {tmp_path}/b.jsonl")
    assert [name for name, _ in datasets] == [f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"]
    mixed = read_datasets(datasets, PreprocessConfig(mix_strategy="interleave_over"))
    assert [(record["n"], str(origin).rpartition("/")[2]) for record, origin in mixed] == [
        ("a0", "a.jsonl:1"),
        ("b0", "b.jsonl:1"),
        ("a1", "a.jsonl:2"),
        ("b1", "b.jsonl:2"),
        ("a0", "a.jsonl:1"),
        ("b2", "b.jsonl:3"),
    ]
