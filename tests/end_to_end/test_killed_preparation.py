"""Preparation, killed by SIGKILL with its workers midway: nothing looks whole, and the same command finishes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mindspeed_ift.cli.preprocess import main as preprocess
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.verify.dataset import verify_dataset
from tests.tiny_tokenizer import make_tiny_tokenizer
from tests.training_runs import ROOT

HELD = """
import sys, time
from mindspeed_ift.cli.preprocess import main
from mindspeed_ift.data import intake, shards, staging

staging.SECONDS_BETWEEN_MARKS = 0
for owner in (intake.Intake, shards.ShareWriter):
    def add(self, chunk, add=owner.add, count=[0]):
        count[0] += 1
        time.sleep(600 if count[0] == 3 else 0.01)
        add(self, chunk)
    owner.add = add
main(sys.argv[1:])
"""
"""The command, which notes how far it is after each chunk and holds before the third: killed before it is done however
busy the machine is."""
DATASET = (".bin", ".idx", ".parquet")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, bytes]]:
    """Flags but for the output, and the files of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("killed")
    make_tiny_tokenizer(folder / "tokenizer")
    records = ({"instruction": f"question {n}", "output": "answer " * (n % 7 + 1)} for n in range(4000))
    (folder / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    flags = ["--input", str(folder / "in.jsonl"), "--tokenizer-name-or-path", str(folder / "tokenizer")]
    flags += ["--prompt-type", "qwen3", "--pack", "--neat-pack", "--seq-length", "256"]
    assert preprocess([*flags, "--output-prefix", str(folder / "whole" / "data")]) == 0
    return flags, dataset(folder / "whole")


def dataset(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in DATASET}


def command(*words: str) -> dict:
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    return {"args": [sys.executable, *words], "env": environment, "text": True}


def kill_midway(flags: list[str], progress: Path) -> None:
    """Start the command in a process group of its own and kill all of it as soon as there is something to go on from."""
    run = subprocess.Popen(
        **command("-c", HELD, *flags), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        until = time.monotonic() + 120
        while not progress.is_file():
            assert run.poll() is None and time.monotonic() < until, run.stderr and run.stderr.read()
            time.sleep(0.01)
        processes = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
    assert run.returncode == -signal.SIGKILL
    assert not psutil.wait_procs(processes, 20)[1]


def finish(flags: list[str]) -> str:
    """What the same command says, run again."""
    done = subprocess.run(**command("tools/preprocess_data.py", *flags), cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_workers_and_all(made: tuple[list[str], dict[str, bytes]], tmp_path: Path) -> None:
    flags = [*made[0], "--workers", "2", "--output-prefix", str(tmp_path / "data")]
    kill_midway(flags, tmp_path / "data.partial" / "progress.json")
    assert [path.name for path in tmp_path.iterdir()] == ["data.partial"], "nothing under the name of the dataset"
    said = finish(flags)
    finished = int(said.partition("going on after record ")[2].partition(", up to which")[0].replace(",", ""))
    assert finished in (500, 1000)
    assert dataset(tmp_path) == made[1]
    assert not (tmp_path / "data.partial").exists() and not verify_dataset(str(tmp_path / "data")).problems


def test_one_of_two_shards(made: tuple[list[str], dict[str, bytes]], tmp_path: Path) -> None:
    flags = [*made[0], "--output-prefix", str(tmp_path / "data"), "--num-shards", "2"]
    killed = [*flags, "--shard-index", "0", "--workers", "2"]
    assert preprocess([*flags, "--shard-index", "1"]) == 0
    before = {path.name for path in tmp_path.iterdir()}
    kill_midway(killed, tmp_path / "data.shard-00000-of-00002.partial" / "progress.json")
    assert {path.name for path in tmp_path.iterdir()} - before == {"data.shard-00000-of-00002.partial"}
    with pytest.raises(UserError, match="1 of 2 shards are missing"):
        preprocess([*flags, "--merge-shards"])
    said = finish(killed)
    assert int(said.partition("going on after chunk ")[2].partition(" of this shard")[0]) in (1, 2)
    assert not dataset(tmp_path), "shards are no dataset"
    assert preprocess([*flags, "--merge-shards"]) == 0
    assert dataset(tmp_path) == made[1]
