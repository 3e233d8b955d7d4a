"""The command line of merging: what it says, exit codes, one line for an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.main import main
from tests.tiny_dataset import random_sample, write_dataset


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        run(main, ["merge-datasets", *arguments])
    return stop.value.code or 0


def test_says_what_it_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write_dataset(tmp_path / "parts" / name, [random_sample(np.random.default_rng(1), 2)], {"prompt_type": "qwen"})
    flags = ["--input", str(tmp_path / "parts"), "--output-prefix", str(tmp_path / "whole")]
    assert exit_code(*flags, "--dry-run") == 0 and not list(tmp_path.glob("whole*"))
    assert exit_code(*flags) == 0
    said = capsys.readouterr().out
    assert f"+ {tmp_path}/parts/a" in said and "2 datasets joined" in said
    assert "whole_packed_labels_document.bin" in said
    assert exit_code("--input", str(tmp_path / "none"), "--output-prefix", str(tmp_path / "whole")) == 2
    error = capsys.readouterr().err
    assert "no dataset there" in error and error.count("\n") == 1
