"""Killed at any moment, a run leaves nothing that looks whole; the next one goes on, and ends in the same bytes."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import RunError, UserError
from mindspeed_ift.data import indexed, intake, staging, workers
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.indexed import read_manifest
from mindspeed_ift.data.intake import InputMarks, Intake
from mindspeed_ift.data.preprocess import preprocess
from mindspeed_ift.data.staging import Staging
from mindspeed_ift.verify.dataset import verify_dataset

PLAIN: dict[str, Any] = {}
PACKED: dict[str, Any] = {"pack": True, "neat_pack": True, "seq_length": 64}
RECORDS = [
    {"instruction": f"question {number}", "input": "", "output": None if number == 9 else "answer " * (number % 7 + 1)}
    for number in range(40)
]


@pytest.fixture
def config(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> PreprocessConfig:
    """Chunks of four records, a mark after each."""
    monkeypatch.setattr(workers, "CHUNK", 4)
    monkeypatch.setattr(staging, "SECONDS_BETWEEN_MARKS", 0)
    monkeypatch.setattr(InputMarks, "known", True)
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    return PreprocessConfig(
        input=str(file),
        output_prefix=str(tmp_path / "out" / "data"),
        tokenizer_name_or_path=str(tokenizer),
        prompt_type="qwen3",
    )


def run(config: PreprocessConfig) -> list[str]:
    """What is said after the form of the records."""
    said: list[str] = []
    preprocess(config, report=said.append)
    return [line for line in said if not line.startswith("first ")]


def digests(config: PreprocessConfig) -> dict[str, str]:
    folder = Path(config.output_prefix).parent
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def kill_at(config: PreprocessConfig, owner: Any, name: str, call: int) -> None:
    """Run in a process that is killed at that call of a function."""
    process = multiprocessing.get_context("fork").Process(target=_run_and_die, args=(config, owner, name, call))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, f"{name} was not called {call} times"


def _run_and_die(config: PreprocessConfig, owner: Any, name: str, call: int) -> None:
    original: Callable[..., Any] = getattr(owner, name)
    left = [call]

    def counted(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    setattr(owner, name, counted)
    preprocess(config, report=lambda line: None)


def looks_whole(config: PreprocessConfig) -> bool:
    try:
        InstructionDataset(config.output_prefix)
    except UserError:
        return False
    return True


MOMENTS = [
    (Intake, "add", 1, 0),
    (Intake, "add", 7, 24),
    (Staging, "save", 3, 8),
    (intake.LedgerFile, "write_parquet", 1, 40),
    (indexed, "publish", 1, 40),
]
"""Where a run dies: whose function, its name, at which call, and how many records are finished then."""


@pytest.mark.parametrize("options", [PLAIN, PACKED], ids=["plain", "packed"])
@pytest.mark.parametrize(("owner", "name", "call", "finished"), MOMENTS)
def test_goes_on_where_it_was_killed(
    config: PreprocessConfig, tmp_path: Path, options: dict[str, Any], owner: Any, name: str, call: int, finished: int
) -> None:
    config = replace(config, **options)
    whole = replace(config, output_prefix=str(tmp_path / "whole" / "data"))
    assert not any("going on" in line for line in run(whole))
    kill_at(config, owner, name, call)
    assert not looks_whole(config) and read_manifest(config.output_prefix) is None
    with pytest.raises(UserError, match="not finished .*data.partial.*: run the same preprocess command again"):
        InstructionDataset(config.output_prefix)
    with pytest.raises(UserError, match="is not finished .*data.partial"):
        verify_dataset(config.output_prefix)
    said = run(replace(config, workers=2 if finished == 24 else 1, log_interval=7, max_drop_fraction=0.5))
    assert [line.split(",")[0] for line in said if "going on" in line] == (
        [f"going on after record {finished}"] if finished else []
    )
    expected = digests(whole)
    expected.pop("data.manifest.json")
    found = digests(config)
    found.pop("data.manifest.json")
    assert found == expected
    manifests = [read_manifest(one.output_prefix) for one in (config, whole)]
    for manifest in manifests:
        manifest.pop("flags")
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("call", range(1, 9))
def test_killed_while_the_files_get_their_names(
    config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Over an old dataset: what lies there is the old, the new, or nothing that can be read."""
    run(config)
    old = digests(config)
    config = replace(config, train_on_prompt=True)
    monkeypatch.setattr(staging, "SECONDS_BETWEEN_MARKS", 1000)  # so that the only other replacement is the last mark
    kill_at(config, os, "replace", call + 1)
    if looks_whole(config):
        dataset = InstructionDataset(config.output_prefix)
        assert call == 8 and dataset.manifest is None
        assert all((one.labels == one.input_ids).all() for one in map(dataset.__getitem__, range(len(dataset))))
    else:
        assert read_manifest(config.output_prefix) is None
    assert not any("going on" in line for line in run(config))
    assert digests(config).keys() == old.keys() and digests(config) != old


@pytest.mark.parametrize("options", [PLAIN, {**PACKED, "cache_dir": "cache"}], ids=["plain", "packed"])
def test_begins_anew_when_something_changed(
    config: PreprocessConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(config, **options)
    parts = Path("cache" if "cache_dir" in options else "out") / "data.partial"
    file = Path(config.input)
    before = file.stat()

    def change_input() -> None:
        file.write_text(file.read_text().replace("question 3", "question x"))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    def damage_a_part() -> None:
        name = next(path for path in parts.iterdir() if path.name.endswith("labels_document.bin"))
        name.write_bytes(b"x" + name.read_bytes()[1:])

    for change, message in (
        (change_input, "is of a run with other flags, input or program: beginning anew"),
        (damage_a_part, "is not as it was left: beginning anew"),
        ((parts / "ledger.rows").unlink, "is not as it was left: beginning anew"),
    ):
        kill_at(config, Intake, "add", 5)
        change()
        said = run(config)
        assert any(message in line for line in said) and not any("going on" in line for line in said)
        found = digests(config)
        run(config)
        assert digests(config) == found
    kill_at(config, Intake, "add", 5)
    assert any("other flags" in line for line in run(replace(config, append_eod=True)))
    assert not list(tmp_path.rglob("*.partial"))


def test_a_worker_that_died_leaves_what_is_finished(config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails for no fault of its data says that it can be gone on with; bad data ends it for good."""
    add = Intake.add

    def failing(self: Intake, chunk: workers.EncodedChunk) -> None:
        if self.ledger.read == 12:
            raise RunError("a worker process died")
        add(self, chunk)

    monkeypatch.setattr(Intake, "add", failing)
    with pytest.raises(RunError, match="died; the same command goes on from what is finished in .*data.partial"):
        run(config)
    monkeypatch.setattr(Intake, "add", add)
    assert any("going on after record 12" in line for line in run(config))
    file = Path(config.input)
    file.write_text(file.read_text() + "{broken")
    with pytest.raises(UserError, match="line 41 is not JSON"):
        run(config)
    assert "data.partial" not in {path.name for path in Path(config.output_prefix).parent.iterdir()}


def test_a_disk_that_is_full_for_the_ledger_only(config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line in each place where its rows go to the disk; what is finished stays."""

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("append", "marks", "write_parquet"):
        with monkeypatch.context() as patch:
            patch.setattr(intake.LedgerFile, name, full)
            with pytest.raises(RunError, match="no space left to write .*out/data"):
                run(config)
        assert not looks_whole(config)
    assert any("going on after record 40" in line for line in run(config))
    with pytest.raises(OSError, match="No space left") as caught:
        intake.LedgerFile(Path(config.output_prefix).parent).write_parquet(Path("/dev/full"))
    assert caught.value.errno == errno.ENOSPC


def test_an_interrupted_run_says_how_to_go_on(config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Intake.add

    def interrupted(self: Intake, chunk: workers.EncodedChunk) -> None:
        if self.ledger.read == stops_at[0]:
            raise KeyboardInterrupt
        add(self, chunk)

    monkeypatch.setattr(Intake, "add", interrupted)
    said: list[str] = []
    stops_at = [0]
    for place in (0, 12):
        stops_at[0] = place
        with pytest.raises(KeyboardInterrupt):
            preprocess(config, report=said.append)
    hints = [line for line in said if "the same command goes on from what is finished in" in line]
    assert len(hints) == 1 and "data.partial" in hints[0]
    monkeypatch.setattr(Intake, "add", add)
    assert any("going on after record 12" in line for line in run(config))


def test_input_that_changes_while_it_is_read(config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Intake.add

    def changing(self: Intake, chunk: workers.EncodedChunk) -> None:
        Path(config.input).touch()
        add(self, chunk)

    monkeypatch.setattr(Intake, "add", changing)
    with pytest.raises(UserError, match="in.jsonl changed while it was read"):
        run(config)
    assert not list(Path(config.output_prefix).parent.iterdir())


def test_workers_do_not_outlive_their_run(config: PreprocessConfig, tmp_path: Path) -> None:
    listed = tmp_path / "children"
    process = multiprocessing.get_context("fork").Process(target=_list_children_and_die, args=(config, listed))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    children = [int(pid) for pid in listed.read_text().split()]
    assert children
    gone = time.monotonic() + 20
    while any(map(_is_alive, children)):
        assert time.monotonic() < gone, "a worker process is still there"
        time.sleep(0.1)


def _list_children_and_die(config: PreprocessConfig, listed: Path) -> None:
    def die(self: Intake, chunk: workers.EncodedChunk) -> None:
        listed.write_text(" ".join(str(child.pid) for child in psutil.Process().children()))
        os.kill(os.getpid(), signal.SIGKILL)

    Intake.add = die  # type: ignore[method-assign]
    preprocess(replace(config, workers=2), report=lambda line: None)


def _is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
