"""Traces of some steps of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.profiler import record_function

from mindspeed_ift.config.profiling import ProfileFlags
from mindspeed_ift.devices.device import Device
from mindspeed_ift.devices.profiler import start_profiler


class Profile:
    """Starts and ends the trace of this rank; does nothing on the others, nor in other steps.

    Args:
        flags: which steps and ranks.
        folder: of the traces, or None.
        device: what is traced.
        rank: of this process.
    """

    def __init__(self, flags: ProfileFlags, folder: Path | None, device: Device, rank: int) -> None:
        self._flags, self._folder, self._device, self._rank = flags, folder, device, rank
        self._running: Any = None
        self._first = self._last = 0

    def begin(self, step: int) -> None:
        """A step begins."""
        flags = self._flags
        if not flags.of_rank(self._rank) or not flags.profile_step_start <= step < flags.profile_step_end:
            return
        if self._running is None:
            assert self._folder is not None
            self._first = step
            name = f"rank_{self._rank}_from_step_{step}"
            self._running = start_profiler(self._device, flags, self._folder, name)
        self._last = step
        self._step = record_function(f"ProfilerStep#{step}")  # the name by which readers of traces know a step
        self._step.__enter__()

    def end(self, step: int) -> None:
        """A step is over; after the last one the trace is written."""
        if self._running is not None:
            self._step.__exit__(None, None, None)
        if step + 1 >= self._flags.profile_step_end:
            self.close()

    def close(self) -> None:
        """Write what there is, if the run ends in the middle."""
        if self._running is None:
            return
        self._device.synchronize()
        self._running.stop()
        self._running = None
        print(
            f"profile: steps {self._first} to {self._last} of rank {self._rank} are in {self._folder}; look at them with "
            "ui.perfetto.dev or TensorBoard",
            flush=True,
        )


def profile_folder(flags: ProfileFlags, save: Path | None) -> Path | None:
    """Where traces go."""
    return flags.profile_save_path or (save / "profile" if save is not None else None)
