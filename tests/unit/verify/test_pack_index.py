"""A pack index that was written passes; each kind of damage is a line of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindspeed_ift.cli.verify_dataset import main
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.pack_index import build_index
from mindspeed_ift.data.packing import PackRules
from mindspeed_ift.verify.dataset import verify_dataset
from tests.tiny_dataset import sample, write_dataset

LENGTHS = (5, 9, 3, 20, 7, 2)
LENGTH = 16

Content = dict[str, Any]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data", [sample(range(10, 10 + n), range(10, 10 + n)) for n in LENGTHS])


def written(prefix: Path, damage: Callable[[Content], Any] = lambda content: None, **rules: Any) -> Path:
    """An index, and what ``damage`` makes of its arrays and facts; rows are [3], [1, 0], [4, 2, 5] by length."""
    path = prefix.with_name("rows.npz")
    build_index(InstructionDataset(str(prefix)), PackRules(LENGTH, **rules), "truncate").save(path)
    with np.load(path) as file:
        content: Content = {name: file[name] for name in file.files}
    content["facts"] = json.loads(str(content["facts"]))
    damage(content)
    facts = np.array(json.dumps(content.pop("facts")))
    with path.open("wb") as file:
        np.savez(file, facts=facts, **content)
    return path


def problems(prefix: Path, path: Path) -> list[str]:
    report = verify_dataset(str(prefix), pack_index=path)
    assert report.checks[-1].name == "pack index"
    return report.problems


@pytest.mark.parametrize(
    "rules", [{}, {"multiple": 8}, {"algorithm": "best-fit"}, {"max_segments": 3}, {"algorithm": "sequential"}]
)
def test_what_is_whole_passes(prefix: Path, rules: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = written(prefix, **rules)
    assert problems(prefix, path) == []
    assert main([str(prefix), "--pack-index", str(path)]) == 0
    assert "6 of 6 samples" in capsys.readouterr().out


def test_samples_that_a_rule_leaves_out(prefix: Path) -> None:
    path = prefix.with_name("dropped.npz")
    build_index(InstructionDataset(str(prefix)), PackRules(LENGTH), "drop").save(path)
    assert problems(prefix, path) == []


def put(name: str, place: Any, value: Any) -> Callable[[Content], Any]:
    return lambda content: content[name].__setitem__(place, value)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (
            put("samples", 1, 2),
            ["sample 2 stands in it 2 times", "sample 1 stands in no row", "1 samples .* says 0", ""],
        ),
        (put("samples", 0, 6), ["it names sample 6, and the dataset has 0 to 5"]),
        (put("samples", 0, -1), ["it names sample -1"]),
        (put("starts", 1, 3), ["row 1 does not end behind its beginning"]),
        (put("starts", 0, 1), ["its rows do not begin at sample 0 and end at 6"]),
        (put("starts", -1, 5), ["its rows do not begin at sample 0 and end at 6"]),
        (lambda c: c.update(starts=c["starts"][[0, 2, 3]]), ["row 0 holds 29 tokens, and 15 fit"]),
        (put("taken", 0, 14), ["a row takes 14 tokens of sample 3, which has 20"]),
        (lambda c: c.update(taken=c["taken"][1:]), ["it has 6 samples and the tokens taken of 5"]),
        (lambda c: c.update(samples=c["samples"] * 0.5), ["its samples are 1-dimensional float64, not a list"]),
        (lambda c: c["facts"].update(cut_samples=2), ["1 samples are cut, and it says 2"]),
        (lambda c: c["facts"].update(dropped_samples=1), ["0 samples stand in no row, and it says 1"]),
        (lambda c: c["facts"]["rules"].update(max_segments=3), ["row 2 holds 3 samples, and 2 fit"]),
        (lambda c: c["facts"].update(dataset="0"), ["was written for another dataset than .* is now"]),
        (lambda c: c.pop("taken"), ["cannot be read as a pack index"]),
    ],
)
def test_each_damage_has_a_line(
    prefix: Path, damage: Callable[[Content], Any], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(prefix, damage)
    found = problems(prefix, path)
    assert len(found) == len(expected)
    for line, part in zip(found, expected):
        assert line.startswith(f"--pack-index {path}") and "repack_dataset.py --data-path" in line and "\n" not in line
        with pytest.raises(AssertionError, match=part):
            raise AssertionError(line)
    assert main([str(prefix), "--pack-index", str(path)]) == 1
    assert capsys.readouterr().out.count("problem: ") == len(expected)


def test_no_index(prefix: Path) -> None:
    (found,) = problems(prefix, prefix.with_name("none.npz"))
    assert "none.npz: no such file" in found
    (found,) = problems(prefix, Path(f"{prefix}_packed_labels_document.bin"))
    assert "is no pack index, or cut off" in found
