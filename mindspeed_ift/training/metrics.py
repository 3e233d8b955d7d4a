"""What a run says: one line a step, metrics.jsonl, and the loss curve as a picture."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, TextIO

from mindspeed_ift.devices.device import Device
from mindspeed_ift.training.step import StepReport


class Metrics:
    """Collects step reports on one rank; the others stay silent.

    Args:
        folder: where metrics.jsonl and loss.png go, or None.
        device: asked for memory.
        world: number of devices, for the throughput of one.
        total: steps of the whole run.
        first: step to start from; later lines of an older run are dropped.
        active: whether this rank speaks.
    """

    def __init__(
        self, folder: Path | None, device: Device, *, world: int, total: int, first: int, interval: int, active: bool
    ) -> None:
        self.device, self.world, self.total, self.interval, self.active = device, world, total, interval, active
        self.folder = folder if active else None
        self._file: TextIO | None = None
        self._since = time.perf_counter()
        self._tokens = 0
        self._steps = 0
        self._learnt = 0
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            _drop_from(self.folder / "metrics.jsonl", first)
            self._file = open(self.folder / "metrics.jsonl", "a", encoding="utf-8")

    def step(self, iteration: int, report: StepReport, skipped: int = 0) -> None:
        """Record one step, and print a line every ``--log-interval``.

        Args:
            iteration: number of the step.
            report: what it did; of one that was refused only the reason and the tokens are recorded.
            skipped: refused steps so far.
        """
        if not self.active:
            return
        self._tokens += report.tokens
        self._learnt += report.learnt_tokens
        self._steps += 1
        record: dict[str, Any] = {"iteration": iteration}
        if report.refusal is None:
            record |= {"loss": report.loss, "gradient_norm": report.gradient_norm}
        else:
            record |= {"refused": report.refusal}
        record |= {"learning_rate": report.learning_rate}
        record |= {"learnt_tokens": report.learnt_tokens, "tokens": report.tokens}
        self._write(record | ({"skipped_steps": skipped} if skipped else {}))
        if report.refusal is None and (iteration % self.interval == 0 or iteration == self.total):
            self._print(iteration, report, skipped)

    def evaluation(self, iteration: int, loss: float, best: float | None, best_iteration: int | None) -> None:
        """Record and print a validation loss, and the lowest so far with its step."""
        if self.active:
            told = f"  best {best:.4f} after step {best_iteration}" if best is not None else ""
            print(f"step {iteration}/{self.total}  validation loss {loss:.4f}{told}", flush=True)
            self._write({"iteration": iteration, "validation_loss": loss})

    def close(self) -> None:
        """Close the file and draw the curve."""
        if self._file is not None and self.folder is not None:
            self._file.close()
            draw(self.folder)

    def _write(self, record: dict) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def _print(self, iteration: int, report: StepReport, skipped: int) -> None:
        seconds = (time.perf_counter() - self._since) / self._steps
        rate = self._tokens / (seconds * self._steps) / self.world
        left = seconds * (self.total - iteration)
        print(
            f"step {iteration}/{self.total}  loss {report.loss:.4f}  lr {report.learning_rate:.3e}  "
            f"grad norm {report.gradient_norm:.3f}  learnt {100 * self._learnt / max(self._tokens, 1):.0f} % of "
            f"{self._tokens} tokens  {rate:,.0f} tokens/s/device  {seconds:.2f} s/step  "
            f"memory {self.device.peak_memory() / 2**30:.1f} GiB  left {_clock(left)}"
            + (f"  skipped {skipped}" if skipped else ""),
            flush=True,
        )
        self._since, self._tokens, self._learnt, self._steps = time.perf_counter(), 0, 0, 0


def draw(folder: Path) -> None:
    """``metrics.jsonl`` -> ``loss.png``, written aside and renamed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for key, label in (("loss", "training"), ("validation_loss", "validation")):
        points = [(record["iteration"], record[key]) for record in records if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss per learnt token")
    axes.grid(alpha=0.3)
    if axes.get_lines():
        axes.legend()
    staging = folder / ".loss.png.partial"
    figure.savefig(staging, format="png", dpi=120)
    pyplot.close(figure)
    os.replace(staging, folder / "loss.png")


def _drop_from(path: Path, first: int) -> None:
    """Forget lines of steps that are done again after a resume."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [
        line for line in lines if line.startswith("{") and line.endswith("}") and json.loads(line)["iteration"] <= first
    ]
    staging = path.with_name(f".{path.name}.partial")
    staging.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    os.replace(staging, path)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
