"""What a run says: one line a step, metrics.jsonl, and the loss curve as a picture."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from mindspeed_ift.data.staging import whole, write_text
from mindspeed_ift.devices.device import Device
from mindspeed_ift.training.step import StepReport
from mindspeed_ift.training.trackers import Trackers

TIMINGS = ("seconds", "tokens_per_second", "real_tokens_per_second", "memory_bytes", "mfu")
"""Names in metrics.jsonl of what no two runs have in common. Tokens a second are those of all devices."""

_SUMMED = ("tokens", "real_tokens", "learnt_tokens", "seconds", "operations")


class Metrics:
    """Collects step reports on one rank; the others stay silent.

    Args:
        folder: where metrics.jsonl and loss.png go, or None.
        device: asked for memory.
        world: number of devices, for the throughput of one.
        total: steps of the whole run.
        first: step to start from; later lines of an older run are dropped.
        interval: steps between lines.
        active: whether this rank speaks.
        operations: of a step; None: the model's share of the device's peak (MFU) is not known.
        trackers: that get what metrics.jsonl gets.
    """

    def __init__(
        self,
        folder: Path | None,
        device: Device,
        *,
        world: int,
        total: int,
        first: int,
        interval: int,
        active: bool,
        operations: Callable[[StepReport], float] | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        self.device, self.world, self.total, self.interval, self.active = device, world, total, interval, active
        self.folder = folder if active else None
        self._operations, self._peak = operations, device.peak_operations() if operations is not None else None
        self._file: TextIO | None = None
        self._since = self._begun = time.perf_counter()
        self._sums = dict.fromkeys(_SUMMED, 0.0)
        self._steps = 0
        self._trackers = trackers or Trackers()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            _drop_from(self.folder / "metrics.jsonl", first)
            self._file = open(self.folder / "metrics.jsonl", "a", encoding="utf-8")

    def begin(self) -> None:
        """A step begins: what came before, an evaluation or a save, is none of its time."""
        self._begun = time.perf_counter()

    def step(self, iteration: int, report: StepReport, skipped: int = 0) -> None:
        """Record one step, and print a line every ``--log-interval``.

        Args:
            iteration: number of the step.
            report: what it did; of one that was refused only the reason and the tokens are recorded.
            skipped: refused steps so far.
        """
        if not self.active:
            return
        seconds = max(time.perf_counter() - self._begun, 1e-9)
        operations = self._operations(report) if self._operations is not None and self._peak else 0.0
        counts = (report.tokens, report.real_tokens, report.learnt_tokens, seconds, operations)
        for name, value in zip(_SUMMED, counts, strict=True):
            self._sums[name] += value
        self._steps += 1
        record: dict[str, Any] = {"iteration": iteration}
        if report.overflow:
            record |= {"loss": report.loss, "overflow": True}
        elif report.refusal is None:
            record |= {"loss": report.loss, "gradient_norm": report.gradient_norm}
        else:
            record |= {"refused": report.refusal}
        if report.load_balancing_loss is not None:
            record |= {"load_balancing_loss": report.load_balancing_loss}
        record |= {"loss_scale": report.loss_scale} if report.loss_scale is not None else {}
        record |= {"learning_rate": report.learning_rate}
        record |= {"learnt_tokens": report.learnt_tokens, "tokens": report.tokens, "real_tokens": report.real_tokens}
        record |= {"squared_lengths": report.squared_lengths}
        record |= {"padding_share": 1 - report.real_tokens / max(report.tokens, 1)}
        record |= {"skipped_steps": skipped} if skipped else {}
        self._write(record | self._timings(dict(zip(_SUMMED, counts, strict=True))))
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
        self._trackers.close()

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        self._trackers.write(record)

    def _timings(self, sums: dict[str, float]) -> dict[str, float]:
        """What depends on the clock; with the names of `TIMINGS`."""
        seconds, peak = sums["seconds"], self._peak
        timings = {
            "seconds": seconds,
            "tokens_per_second": sums["tokens"] / seconds,
            "real_tokens_per_second": sums["real_tokens"] / seconds,
            "memory_bytes": float(self.device.peak_memory()),
        }
        return timings | ({"mfu": sums["operations"] / seconds / self.world / peak} if peak else {})

    def _print(self, iteration: int, report: StepReport, skipped: int) -> None:
        sums, timings = self._sums, self._timings(self._sums)
        tokens = max(sums["tokens"], 1)
        wall = (time.perf_counter() - self._since) / self._steps
        balance = "" if report.load_balancing_loss is None else f"balance {report.load_balancing_loss:.3f}  "
        share = f"MFU {100 * timings['mfu']:.1f} %  " if "mfu" in timings else ""
        print(
            f"step {iteration}/{self.total}  loss {report.loss:.4f}  lr {report.learning_rate:.3e}  "
            f"grad norm {report.gradient_norm:.3f}  {balance}learnt {100 * sums['learnt_tokens'] / tokens:.0f} % and pads "
            f"{100 * (1 - sums['real_tokens'] / tokens):.0f} % of {sums['tokens']:.0f} tokens  "
            f"{timings['tokens_per_second'] / self.world:,.0f} tokens/s/device  "
            f"{timings['real_tokens_per_second']:,.0f} tokens/s without pads  {share}"
            f"{sums['seconds'] / self._steps:.2f} s/step  memory {timings['memory_bytes'] / 2**30:.1f} GiB  "
            f"left {_clock(wall * (self.total - iteration))}{_scale(report)}"
            + (f"  skipped {skipped}" if skipped else ""),
            flush=True,
        )
        self._since, self._sums, self._steps = time.perf_counter(), dict.fromkeys(_SUMMED, 0.0), 0


def draw(folder: Path) -> None:
    """``metrics.jsonl`` -> ``loss.png``, written aside and renamed."""
    from matplotlib.figure import Figure  # pyplot takes as long to import as hundreds of tiny steps

    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for key, label in (("loss", "training"), ("validation_loss", "validation")):
        points = [(record["iteration"], record[key]) for record in records if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    if axes.get_lines():
        axes.legend()
    with whole(folder / "loss.png") as aside:
        figure.savefig(aside, format="png", dpi=120)


def _drop_from(path: Path, first: int) -> None:
    """Forget lines of steps that are done again after a resume."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [
        line for line in lines if line.startswith("{") and line.endswith("}") and json.loads(line)["iteration"] <= first
    ]
    write_text(path, "".join(f"{line}\n" for line in kept))


def _scale(report: StepReport) -> str:
    """What fp16 has to say of a step."""
    if report.loss_scale is None:
        return ""
    return f"  loss scale {report.loss_scale:g}" + (", overflow: no weight was moved" if report.overflow else "")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
