"""Checkpoints in the background: training goes on, the checkpoint appears once all is written, and whole."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import RunError
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.training import state
from mindspeed_ift.training.saving import Saver, Written
from tests.unit.training.test_state import Run

MANIFEST = {
    "format": "torch",
    "architecture": asdict(Architecture.from_preset("qwen3-0.6b")),
    "layout": {},
    "stage_layers": [],
    "dtype": "float32",
    "distributed_optimizer": False,
    "iteration": 1,
}


class Slow:
    """A job that ends when it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.may_end, self.error = threading.Event(), error

    def __call__(self, staging: Path) -> Written:
        """Write a file."""
        assert self.may_end.wait(60)
        if self.error is not None:
            raise self.error
        return Written(megatron.write_file(staging, "some.pt", lambda file: torch.save({}, file)), [])


def test_it_appears_once_it_is_written(tmp_path: Path, groups: Groups) -> None:
    saver, job, told = Saver(tmp_path, groups, background=True), Slow(), []
    saver.begin(1, 0)
    saver.start(job, MANIFEST, lambda: told.append(megatron.latest_folder(tmp_path)))
    saver.poll()
    assert not told and megatron.latest_folder(tmp_path) is None
    job.may_end.set()
    saver.finish()
    assert told == [tmp_path / "iter_0000001"] and megatron.damage(told[0]) is None
    saver.finish()
    assert len(told) == 1


def test_it_is_finished_between_steps(tmp_path: Path, groups: Groups) -> None:
    saver, job, told = Saver(tmp_path, groups, background=True), Slow(), []
    saver.begin(1, 0)
    saver.start(job, MANIFEST, lambda: told.append(1))
    job.may_end.set()
    while not told:
        saver.poll()
    assert megatron.latest_folder(tmp_path) == tmp_path / "iter_0000001"


def test_the_next_one_waits_for_it(tmp_path: Path, groups: Groups) -> None:
    saver, job = Saver(tmp_path, groups, background=True), Slow()
    saver.begin(1, 0)
    saver.start(job, MANIFEST, lambda: None)
    threading.Timer(0.2, job.may_end.set).start()
    saver.begin(2, 0)
    assert megatron.latest_folder(tmp_path) == tmp_path / "iter_0000001"
    assert megatron.staging_folder(tmp_path, 2).is_dir()


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(
    ("error", "message"), [(RunError("no room"), "^no room$"), (ValueError("odd"), "of step 2 .*ValueError: odd")]
)
def test_one_that_fails_leaves_the_one_before(
    tmp_path: Path, groups: Groups, error: Exception, message: str, background: bool
) -> None:
    saver = Saver(tmp_path, groups, background)
    for iteration, its_error in ((1, None), (2, error)):
        job = Slow(its_error)
        job.may_end.set()
        saver.begin(iteration, 0)
        with pytest.raises(RunError, match=message) if its_error else contextlib.nullcontext():
            saver.start(job, {**MANIFEST, "iteration": iteration}, lambda: None)
            saver.finish()
    assert megatron.latest_folder(tmp_path) == tmp_path / "iter_0000001"
    assert {path.name for path in tmp_path.iterdir()} == {"iter_0000001", megatron.TRACKER}


@pytest.mark.parametrize("ckpt_format", ["torch_dist", "torch"])
def test_what_is_written_is_of_the_step_that_asked(
    tmp_path: Path, groups: Groups, monkeypatch: pytest.MonkeyPatch, ckpt_format: str
) -> None:
    """However far training has come meanwhile."""
    may_write, real = threading.Event(), megatron.write_file

    def write_file(*arguments: object) -> megatron.Files:
        assert may_write.wait(60)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(megatron, "write_file", write_file)
    first, second = Run(groups), Run(groups)
    for run in (first, second):
        run.step(1)
    saver = Saver(tmp_path, groups, background=True)
    state.save(saver, 3, first.trained, ckpt_format, {})
    for seed in (2, 3):
        first.step(seed)
    may_write.set()
    saver.finish()
    second.load(tmp_path / "iter_0000003")
    for seed in (2, 3):
        second.step(seed)
    assert all(map(torch.equal, first.stage.parameters(), second.stage.parameters()))
