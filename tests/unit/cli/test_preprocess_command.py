"""The command line of data preparation: exit codes, one line for an error, the account at the end."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest
import rich.progress

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.preprocess import main
from mindspeed_ift.data import preprocess as module
from mindspeed_ift.data.indexed import read_manifest
from tests.tiny_tokenizer import make_tiny_tokenizer


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    records = [{"instruction": "q", "output": "a"}, {"instruction": "q", "output": None}]
    (tmp_path / "in.json").write_text(json.dumps(records))
    tokenizer = make_tiny_tokenizer(tmp_path / "tokenizer")
    return [
        *("--input", str(tmp_path / "in.json"), "--output-prefix", str(tmp_path / "out" / "data")),
        *("--tokenizer-type", "PretrainedFromHF", "--tokenizer-name-or-path", str(tokenizer)),
    ]


def exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        run(main, arguments)
    return stop.value.code or 0


def test_says_what_it_did(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([*arguments, "--n-subs", "2", "--max-drop-fraction", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "--n-subs changes nothing here" in said and "dropped: 'output' is missing or null" in said
    assert "2 records -> 1 documents" in said and "data_packed_labels_document.bin" in said
    assert (tmp_path / "out" / "data.manifest.json").is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--inptu", "x"], "unknown flag --inptu; did you mean --input?"),
        (["--pack"], "--pack needs --seq-length"),
        (["--pack", "--dry-run"], "--pack needs --seq-length"),
        (["--seq-length", "many"], "see preprocess --help"),
        (["--input", "none.parquet"], "no such file: none.parquet"),
    ],
)
def test_one_line_and_exit_code_2(
    arguments: list[str], more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code([*arguments, *more]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_merge_group_keys_joins_what_is_there(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        assert (
            exit_code([*arguments, "--max-drop-fraction", "1", "--output-prefix", str(tmp_path / "parts" / name)]) == 0
        )
    capsys.readouterr()
    joins = ["--input", str(tmp_path / "parts"), "--output-prefix", str(tmp_path / "whole"), "--merge-group-keys"]
    keys = [f"packed_{name}_document" for name in ("input_ids", "attention_mask", "labels")]
    assert exit_code([*joins, *keys, "--workers", "2"]) == 0
    said = capsys.readouterr().out
    assert "not used: --workers" in said and "2 datasets joined" in said
    assert read_manifest(tmp_path / "whole")["samples"] == 2
    assert exit_code([*joins, *keys[:1], "packed_answers_document"]) == 2
    assert "no dataset of --input has *_packed_answers_document.idx" in capsys.readouterr().err


def test_a_terminal_gets_a_bar(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    monkeypatch.setattr(rich.progress.Progress, "update", lambda self, task, **to: moved.append(to["description"]))
    threads = []
    pool = module.WorkerPool
    monkeypatch.setattr(module, "WorkerPool", lambda *given: threads.append(threading.active_count()) or pool(*given))
    before = threading.active_count()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert exit_code([*arguments, "--max-drop-fraction", "0.5", "--log-interval", "1"]) == 0
    assert len(moved) == 1 and moved[0].startswith("2 records read, 1 kept, ")
    assert threads == [before], "with the bar's thread worker processes could not be forked"
    said = capsys.readouterr().out
    assert "2 records -> 1 documents" in said and "2 records read, 1 kept" not in said
