"""Metrics for other eyes: TensorBoard, Weights & Biases, SwanLab. None of them can end a training."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from mindspeed_ift.config.describe import as_text
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.tracking import TrackingFlags


class Tracker(Protocol):
    """What each of them does; whatever it raises, `Trackers` goes on without it."""

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """The numbers of one step, or of an evaluation after it."""

    def close(self) -> None:
        """The run is over: write what is still in memory."""


class TensorBoard:
    """Event files.

    Args:
        folder: of the event files.
        first: step to start from; what a former run wrote after it is hidden.
        settings: what the run was asked for.
    """

    def __init__(self, folder: Path, first: int, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # which imports tensorboard

        self._writer: Any = SummaryWriter(str(folder), purge_step=first + 1)
        self._writer.add_text("configuration", f"```\n{as_text(settings)}```", first)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Under the names of metrics.jsonl."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class Service:
    """A run on Weights & Biases or SwanLab; their environment variables (WANDB_MODE, SWANLAB_API_KEY) keep their meaning.

    Args:
        run: as either's ``init`` gives it.
    """

    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Under the names of metrics.jsonl; an evaluation joins the numbers of its step."""
        self._run.log(numbers, step=step)

    def close(self) -> None:
        """Send the rest."""
        self._run.finish()


def _weights_and_biases(flags: TrackingFlags, folder: Path | None, settings: dict[str, Any]) -> Service:
    import wandb

    place = _made(folder)  # else it takes a temporary one; it makes a folder of its own there, wandb
    return Service(
        wandb.init(
            project=flags.wandb_project,
            entity=flags.wandb_entity,
            name=flags.wandb_exp_name,
            dir=place,
            config=settings,
        )
    )


def _swanlab(flags: TrackingFlags, folder: Path | None, settings: dict[str, Any]) -> Service:
    import swanlab

    return Service(
        swanlab.init(
            project=flags.swanlab_project,
            workspace=flags.swanlab_workspace,
            name=flags.swanlab_run_name,
            log_dir=_made(folder),
            config=settings,
        )
    )


def _made(folder: Path | None) -> str | None:
    """The folder for a service's own files, there now; None: where it likes."""
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


Starts = Sequence[tuple[str, Callable[[], Tracker]]]
"""Name of a tracker in messages, and what starts it."""


class Trackers:
    """All trackers of a run. One that fails, at the start or later, is left out from then on, and a line says so."""

    def __init__(self, starts: Starts = ()) -> None:
        self._running: dict[str, Tracker] = {}
        for name, start in starts:
            try:
                self._running[name] = start()
            except Exception as error:  # noqa: BLE001 - whatever fails in foreign code, training goes on
                _say_that_it_failed(name, "does not start", error)

    def write(self, record: dict[str, Any]) -> None:
        """What is a number of one record of metrics.jsonl."""
        numbers = {
            name: value
            for name, value in record.items()
            if name != "iteration" and isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._each("fails", lambda tracker: tracker.write(record["iteration"], numbers))

    def close(self) -> None:
        """End them all."""
        self._each("does not end well", lambda tracker: tracker.close())
        self._running.clear()

    def _each(self, what: str, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._running.items()):
            try:
                act(tracker)
            except Exception as error:  # noqa: BLE001 - as above
                _say_that_it_failed(name, what, error)
                del self._running[name]


def require_packages(flags: TrackingFlags) -> None:
    """Refuse a tracker that was asked for and is not installed.

    Raises:
        UserError: with the command that installs it.
    """
    asked = {"tensorboard": "tensorboard_dir", "wandb": "wandb_project", "swanlab": "swanlab_project"}
    for package, field in asked.items():
        if getattr(flags, field) is not None and not _installed(package):
            flag = "--" + field.replace("_", "-")
            raise UserError(f"{flag} needs the package {package}: pip install {package}, or leave the flag out")


def starts_of(flags: TrackingFlags, save: Path | None, first: int, settings: dict[str, Any]) -> Starts:
    """The trackers that a run has: those asked for, and TensorBoard where it is installed.

    Args:
        flags: which, and where.
        save: folder of the run, or None.
        first: step to start from.
        settings: what the run was asked for; the trackers show it.
    """
    starts: list[tuple[str, Callable[[], Tracker]]] = []
    board = flags.tensorboard_dir
    if board is None and save is not None and _installed("tensorboard"):
        board = save / "tensorboard"
    if board is not None:
        starts.append(("TensorBoard", lambda: TensorBoard(board, first, settings)))
    swanlab = save / "swanlab" if save is not None else None
    for name, begin, project, folder in (
        ("Weights & Biases", _weights_and_biases, flags.wandb_project, flags.wandb_save_dir or save),
        ("SwanLab", _swanlab, flags.swanlab_project, flags.swanlab_logdir or swanlab),
    ):
        if project is not None:
            starts.append((name, lambda begin=begin, folder=folder: begin(flags, folder, settings)))
    return starts


def _installed(package: str) -> bool:
    if package in sys.modules:
        return sys.modules[package] is not None
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # a folder of that name, which wandb leaves, is no package


def _say_that_it_failed(name: str, what: str, error: Exception) -> None:
    told = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"notice: {name} {what} and is left out from here ({told}); metrics.jsonl in --save has it all", flush=True)
