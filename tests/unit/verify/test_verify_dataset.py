"""A whole dataset passes; each kind of damage is a problem of its own, with the place where it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from mindspeed_ift.cli.verify_dataset import main
from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.indexed import manifest_path
from mindspeed_ift.data.ledger_file import ledger_path
from mindspeed_ift.data.preprocess import preprocess
from mindspeed_ift.verify import contents as module
from mindspeed_ift.verify.dataset import verify_dataset
from tests.tiny_dataset import sample, write_dataset
from tests.tiny_tokenizer import make_tiny_tokenizer

MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "pack": {"pack": True, "seq_length": 64},
    "neat": {"pack": True, "neat_pack": True, "seq_length": 64},
    "text": {"handler_name": "GeneralPretrainHandler", "json_keys": ("instruction", "output")},
    "mistral": {"prompt_type": "mistral"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The dataset of a mode, made once."""
    folder = tmp_path_factory.mktemp("datasets")
    tokenizer = make_tiny_tokenizer(folder / "tokenizer")
    records = [{"instruction": f"question {n}", "output": "answer " * (n % 5 + 1)} for n in range(30)]
    history = [["before", "then"], ["again", "so"]]
    (folder / "in.json").write_text(json.dumps([{**record, "history": history} for record in records]))
    config = PreprocessConfig(str(folder / "in.json"), prompt_type="qwen3", tokenizer_name_or_path=str(tokenizer))

    def make(mode: str) -> Path:
        prefix = folder / mode / "data"
        if not manifest_path(prefix).is_file():
            preprocess(replace(config, output_prefix=str(prefix), **MODES[mode]), report=lambda line: None)
        return prefix

    return make


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("with_manifest", [True, False])
def test_what_is_whole_passes(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, with_manifest: bool
) -> None:
    monkeypatch.setattr(module, "_VALUES_AT_ONCE", 50)
    prefix = copied(made(mode), tmp_path)
    if not with_manifest:
        manifest_path(prefix).unlink()
    report = verify_dataset(str(prefix))
    assert report.problems == [] and len(report.notices) == (0 if with_manifest else 2)
    names = {check.name for check in report.checks}
    assert ("ledger" in names) == with_manifest
    assert ("counts as in the manifest" in names) == (with_manifest and mode != "text")
    if mode == "neat":
        assert any("samples numbered" in check.examined for check in report.checks)


def copied(prefix: Path, folder: Path) -> Path:
    for file in prefix.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / prefix.name


def values(prefix: Path, column: str) -> np.ndarray:
    return np.memmap(f"{prefix}_packed_{column}_document.bin", "<i4", "r+")


def set_value(column: str, position: int, value: int) -> Callable[[Path], None]:
    def change(prefix: Path) -> None:
        values(prefix, column)[position] = value

    return change


def set_manifest(name: str, value: Any) -> Callable[[Path], None]:
    def change(prefix: Path) -> None:
        path = manifest_path(prefix)
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    return change


def cut(name: str, count: int) -> Callable[[Path], None]:
    def change(prefix: Path) -> None:
        file = prefix.with_name(prefix.name + name)
        file.write_bytes(file.read_bytes()[:-count])

    return change


def patch_index(place: int, value: int) -> Callable[[Path], None]:
    """Overwrite one byte of the index of ids: header 34, then 30 lengths of 4, 30 offsets of 8, 31 indices of 8."""

    def change(prefix: Path) -> None:
        file = prefix.with_name(prefix.name + "_packed_input_ids_document.idx")
        content = bytearray(file.read_bytes())
        content[place] = value
        file.write_bytes(content)

    return change


DAMAGE: list[tuple[str, Callable[[Path], Any], list[str]]] = [
    ("plain", lambda prefix: Path(f"{prefix}.ledger.parquet").unlink(), ["ledger.parquet is missing", "cannot be read"]),
    ("plain", cut("_packed_labels_document.bin", 4), ["bytes, the manifest says", "do not belong together"]),
    ("plain", cut("_packed_labels_document.idx", 8), ["bytes, the manifest says", "it was cut or changed"]),
    ("plain", cut(".ledger.parquet", 9), ["bytes, the manifest says", "ledger.parquet cannot be read"]),
    ("plain", patch_index(34 + 30 * 4 + 8, 9), ["another sha256", "does not begin where the one before it ends"]),
    ("plain", patch_index(34 + 30 * 12, 1), ["another sha256", "document indices do not go from 0 to 30"]),
    (
        "plain",
        set_value("input_ids", 3, 10**6),
        ["another sha256", "document 0, position 3: id 1000000, which is none of the vocabulary"],
    ),
    ("plain", set_value("input_ids", 0, -1), ["another sha256", "document 0, position 0: id -1"]),
    (
        "plain",
        set_value("labels", -1, 5),
        ["another sha256", "document 29, position .*: label 5 where the id is another"],
    ),
    ("plain", set_value("attention_mask", 2, 0), ["another sha256", "document 0, position 2: mask 0, not 1"]),
    ("neat", set_value("attention_mask", 2, 2), ["another sha256", "document 0, position 3: mask 1 out of order"]),
    ("neat", set_value("attention_mask", 0, 0), ["position 0: mask 0 out of order", "position 0: id .* where a pad"]),
    ("neat", set_value("input_ids", 63, 7), ["another sha256", "document 0, position 63: id 7 where a pad must be"]),
    ("pack", set_value("input_ids", 63, 7), ["another sha256", "document 0, position 63: id 7 where a pad must be"]),
    ("neat", set_manifest("conversations", 31), ["30 conversations in the columns, 31 in the manifest"]),
    ("plain", set_manifest("learnt_tokens", 1), ["learnt_tokens in the columns, 1 in the manifest", "sum to"]),
    ("plain", set_manifest("tokens", 1), ["tokens in the columns, 1 in the manifest", "its tokens sum to .*says 1"]),
    ("plain", set_manifest("seq_length", 20), ["document 0 has .* tokens, with --seq-length 20"]),
    ("pack", set_manifest("seq_length", 63), ["has 64 tokens, with --seq-length 63 --pack"]),
    ("text", set_manifest("vocab_size", 5), ["which is none of the vocabulary"]),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "damage", "expected"), DAMAGE)
def test_each_damage_is_a_problem(
    made: Callable[[str], Path], tmp_path: Path, mode: str, damage: Callable[[Path], Any], expected: list[str]
) -> None:
    prefix = copied(made(mode), tmp_path)
    damage(prefix)
    problems = verify_dataset(str(prefix)).problems
    for message in expected:
        assert any(re.search(message, line) for line in problems), (message, problems)


def test_columns_of_two_runs(tmp_path: Path) -> None:
    one = write_dataset(tmp_path / "data", [sample([1, 2], [-100, 2]), sample([3], [3])])
    other = write_dataset(tmp_path / "other", [sample([1], [1]), sample([3, 4], [3, 4])])
    for suffix in (".bin", ".idx"):
        end = f"_packed_labels_document{suffix}"
        Path(f"{other}{end}").replace(f"{one}{end}")
    assert "documents of other lengths: they are not of one run" in verify_dataset(str(one)).problems[0]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dataset at .*none; give the --output-prefix"):
        verify_dataset(str(tmp_path / "sub" / "none"))
    write_dataset(tmp_path / "empty", [])
    assert verify_dataset(str(tmp_path / "empty")).problems == [
        f"{tmp_path / 'empty'} holds no documents; prepare it again from records that are kept"
    ]


def test_command(made: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = copied(made("plain"), tmp_path)
    assert main([str(prefix)]) == 0
    assert "ids, all below" in capsys.readouterr().out
    tokenizer = made("plain").parent.parent / "tokenizer"
    manifest_path(prefix).unlink()
    set_value("input_ids", 1, 10**6)(prefix)
    assert main(["--data-path", str(prefix), "--tokenizer-name-or-path", str(tokenizer)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("notice: no data.manifest.json")]
    problems = [line for line in said if line.startswith("problem: ")]
    assert len(problems) == 1 and "document 0, position 1: id 1000000" in problems[0]
    with pytest.raises(UserError, match="--data-path is missing"):
        main([])


def test_an_altered_certificate(made: Callable[[str], Path], tmp_path: Path) -> None:
    prefix = copied(made("plain"), tmp_path)
    (found,) = (check for check in verify_dataset(str(prefix)).checks if check.name == "template certificate")
    assert found.examined == "as it was given (verdict: differs)"
    manifest = json.loads(manifest_path(prefix).read_text(encoding="utf-8"))
    manifest["template_certificate"]["verdict"] = "equal"
    manifest_path(prefix).write_text(json.dumps(manifest), encoding="utf-8")
    (problem,) = verify_dataset(str(prefix)).problems
    assert f"certificate of dataset {prefix} is not about its template" in problem


@pytest.mark.parametrize(("column", "value"), [("rows", 99), ("positions", 64), ("positions", -1), ("rows", None)])
def test_a_ledger_with_places_that_are_none(
    made: Callable[[str], Path], tmp_path: Path, column: str, value: int | None
) -> None:
    prefix = copied(made("pack"), tmp_path)
    path = ledger_path(prefix)
    table = parquet.read_table(path)
    numbers = table[column].to_pylist()
    numbers[4] = [] if value is None else [value]
    place = table.column_names.index(column)
    parquet.write_table(table.set_column(place, column, pyarrow.array(numbers, table.schema.field(column).type)), path)
    problems = verify_dataset(str(prefix)).problems
    assert problems[-1].startswith(f"{path}: row 4 has {column} that are not those of its samples (1 such)")
