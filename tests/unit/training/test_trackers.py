"""Trackers get a run's numbers and settings; none of them, missing or failing, ends a training without need."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.describe import settings
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.layout import Layout
from mindspeed_ift.config.tracking import TrackingFlags
from mindspeed_ift.config.tuning import TuneConfig
from mindspeed_ift.training.trackers import Trackers, require_packages, starts_of

ARCHITECTURE = Architecture.from_preset("qwen3-0.6b")
RECORD = {"iteration": 4, "loss": 1.5, "tokens": 7, "refused": "the loss is nan", "flag": True}
SETTINGS = {"flags": {"lr": 1e-5}}
Said = list[tuple]


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """A module of that name."""
    module = types.ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def service(said: Said) -> Callable[..., Any]:
    """The ``init`` of Weights & Biases and of SwanLab: what it is told is kept."""

    class Run:
        def log(self, numbers: dict[str, float], step: int) -> None:
            said.append((numbers, step))

        def finish(self) -> None:
            said.append(("finished",))

    def init(**options: Any) -> Run:
        said.append((options,))
        return Run()

    return init


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Said:
    """What TensorBoard is told."""
    said: Said = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            said.append((folder, purge_step))

        def add_text(self, name: str, text: str, step: int) -> None:
            said.append((name, text, step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            said.append((name, value, step))

        def flush(self) -> None: ...

        def close(self) -> None:
            said.append(("closed",))

    stand_in(monkeypatch, "tensorboard")
    stand_in(monkeypatch, "torch.utils.tensorboard", SummaryWriter=SummaryWriter)
    return said


@pytest.mark.parametrize("given", [True, False], ids=["asked for", "by default"])
def test_tensorboard_serves_where_it_is_installed(board: Said, tmp_path: Path, given: bool) -> None:
    folder = tmp_path / "board" if given else tmp_path / "run/tensorboard"
    flags = TrackingFlags(tensorboard_dir=folder if given else None)
    trackers = Trackers(starts_of(flags, None if given else tmp_path / "run", 3, SETTINGS))
    trackers.write(RECORD)
    trackers.close()
    assert board == [
        (str(folder), 4),
        ("configuration", "```\nflags:\n  lr: 1.0e-05\n```", 3),
        ("loss", 1.5, 4),
        ("tokens", 7, 4),
        ("closed",),
    ]


def test_nothing_is_tracked_where_nothing_is_asked_for_or_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert not starts_of(TrackingFlags(), tmp_path, 0, SETTINGS)
    stand_in(monkeypatch, "tensorboard")
    assert not starts_of(TrackingFlags(), None, 0, SETTINGS)


@pytest.mark.parametrize("own_folder", [True, False])
def test_services_get_project_names_settings_and_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_folder: bool
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    told: dict[str, Said] = {"wandb": [], "swanlab": []}
    for name, said in told.items():
        stand_in(monkeypatch, name, init=service(said))
    line = "--wandb-project w --wandb-exp-name x --wandb-entity y --swanlab-project s --swanlab-run-name t"
    words = [*line.split(), "--swanlab-workspace", "u", "--save", str(tmp_path)]
    if own_folder:
        words += ["--wandb-save-dir", str(tmp_path / "own_w"), "--swanlab-logdir", str(tmp_path / "own_s")]
    config = parse(TuneConfig, words, program="test")
    shown = settings(config, ARCHITECTURE, Layout(tensor=2))
    require_packages(config.tracking)
    trackers = Trackers(starts_of(config.tracking, config.run.save, 0, shown))
    trackers.write(RECORD)
    trackers.close()
    folders = [str(tmp_path / name) for name in (("own_w", "own_s") if own_folder else ("", "swanlab"))]
    assert told["wandb"][0] == ({"project": "w", "entity": "y", "name": "x", "dir": folders[0], "config": shown},)
    swanlab = {"project": "s", "workspace": "u", "name": "t", "log_dir": folders[1], "config": shown}
    assert told["swanlab"][0] == (swanlab,)
    for said in told.values():
        assert said[1:] == [({"loss": 1.5, "tokens": 7}, 4), ("finished",)]
    assert all(Path(folder).is_dir() for folder in folders)
    shown = json.loads(json.dumps(shown))  # plain values, all of them
    assert shown["flags"]["save"] == str(tmp_path) and shown["layout"]["world"] == 2
    assert shown["architecture"]["num_layers"] == ARCHITECTURE.num_layers


@pytest.mark.parametrize(
    ("package", "flags"),
    [
        ("tensorboard", TrackingFlags(tensorboard_dir=Path("board"))),
        ("wandb", TrackingFlags(wandb_project="w")),
        ("swanlab", TrackingFlags(swanlab_project="s")),
    ],
)
def test_a_tracker_that_is_not_installed_is_refused_with_its_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, flags: TrackingFlags
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs the package {package}: pip install {package}"):
        require_packages(flags)
    monkeypatch.delitem(sys.modules, package)
    (tmp_path / package).mkdir()  # as wandb leaves one behind
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match=package):
        require_packages(flags)
    require_packages(TrackingFlags())


class Failing:
    """A tracker that fails when its turn has come."""

    def __init__(self, failing: str) -> None:
        self.calls, self.failing = 0, failing
        self._do("start")

    def write(self, step: int, numbers: dict[str, float]) -> None:
        self.calls += 1
        self._do("write")

    def close(self) -> None:
        self.calls += 1
        self._do("close")

    def _do(self, what: str) -> None:
        if what == self.failing:
            raise ConnectionError("no route\nto host")


@pytest.mark.parametrize(
    ("failing", "what"), [("start", "does not start"), ("write", "fails"), ("close", "does not end well")]
)
def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(
    capsys: pytest.CaptureFixture, failing: str, what: str
) -> None:
    sound = Failing("never")
    trackers = Trackers([("the bad one", lambda: Failing(failing)), ("the good one", lambda: sound)])
    for _ in range(2):
        trackers.write(RECORD)
    trackers.close()
    assert sound.calls == 3
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"notice: the bad one {what} and is left out from here (ConnectionError: no route to host)")
