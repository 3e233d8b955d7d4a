"""The benchmark of data preparation runs on the project's own records; what it measures is nobody's test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.tiny_tokenizer import make_tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def test_benchmark(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/preprocess.py", "--tokenizer", str(make_tiny_tokenizer(tmp_path / "tiny"))]
    options = ["--records", "30", "--larger", "2", "--runs", "1", "--json", str(tmp_path / "figures.json")]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["records"] == 30 and figures["tokens"] > 30 * 100
    # The template writes an empty thought too, which the raw library is not given.
    assert 0 < figures["tokens"] - figures["raw"]["result"]["tokens"] <= 30 * 20
    assert figures["hf"]["memory"] > 20 and figures["hf"]["larger"]["wall"] > 0
    assert "records/s" in done.stdout and "of raw" in done.stdout
