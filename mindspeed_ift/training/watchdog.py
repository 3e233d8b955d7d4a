"""A step that does not end becomes an error: every rank writes where it stands, and the run ends."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from mindspeed_ift.config.errors import RunError
from mindspeed_ift.config.tuning import RunFlags

MINUTE = 60.0
"""Seconds."""
_GRACE = 5.0
"""Seconds in which the other ranks, whose watches run out at about the same time, write their stacks."""
_FOREVER = 1e8
"""Seconds, three years: more than that the system's clocks refuse."""
_LOOKS = 1.0
"""Seconds between looks at the time, which may have become shorter."""
_LAST_RESORT = 60.0
"""Seconds after which the process is ended from outside of Python, where not even a thread of it runs."""


class Watchdog:
    """A thread that ends the process unless it hears of it again and again.

    Args:
        seconds: without a word.
        folder: where the stacks go, one file a rank; None: to stderr only.
        rank: of this process.
        world: ranks.
        fail: reports an error and ends the process, from a thread.
        remedy: for the message.
    """

    def __init__(
        self, seconds: float, folder: Path | None, rank: int, world: int, fail: Callable[[RunError], None], remedy: str
    ) -> None:
        self.seconds, self.folder, self.rank, self.world = seconds, folder, rank, world
        self.fail, self.remedy = fail, remedy
        self._what, self._allowed, self._until = "the start", seconds, time.monotonic() + seconds
        self._ended = threading.Event()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    @classmethod
    def of_run(cls, run: RunFlags, rank: int, world: int, fail: Callable[[RunError], None]) -> Watchdog:
        """As the flags say."""
        remedy = "if it is only slow, raise --distributed-timeout-minutes"
        return cls(run.distributed_timeout_minutes * MINUTE, run.save, rank, world, fail, remedy)

    def __enter__(self) -> Watchdog:
        self.heard(self._what)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        faulthandler.cancel_dump_traceback_later()

    def heard(self, what: str, times: int = 1) -> None:
        """Start the time anew.

        Args:
            what: is beginning now; ``step 12``.
            times: how often the time that a step may take it may take.
        """
        allowed = min(self.seconds * max(times, 1), _FOREVER)
        self._what, self._allowed, self._until = what, allowed, time.monotonic() + allowed
        faulthandler.dump_traceback_later(allowed + _LAST_RESORT, exit=True, file=sys.__stderr__ or sys.stderr)

    def _watch(self) -> None:
        while not self._ended.wait(min(max(self._until - time.monotonic(), 0.001), _LOOKS)):
            if time.monotonic() >= self._until:
                self._bark()
                return

    def _bark(self) -> None:
        what = self._what
        place, stack = self._stack()
        print(f"rank {self.rank}, {what}:\n{stack}", file=sys.stderr, flush=True)
        told = f"rank {self.rank} is in {place}; the stacks are above"
        if self.folder is not None:
            folder = self.folder / f"hang_{what.replace(' ', '_')}"
            try:
                told = f"{self._write(folder, place)}; the stack of each rank is in {folder}"
            except OSError as error:
                print(f"{folder}: {error}", file=sys.stderr, flush=True)
        if not self._ended.is_set():
            self.fail(
                RunError(f"{what} has not ended within {self._allowed / MINUTE:g} minutes: {told}; {self.remedy}")
            )

    def _write(self, folder: Path, place: str) -> str:
        """Write this rank's stacks, wait a little for the others', and say where everybody is."""
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"rank_{self.rank:05d}.txt", "w", encoding="utf-8") as file:
            file.write(f"{place}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        until = time.monotonic() + _GRACE
        while len(_fresh(folder)) < self.world and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.1)  # the last one's first line
        ranks: dict[str, list[str]] = {}
        for path in _fresh(folder):
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            ranks.setdefault(first, []).append(str(int(path.stem[5:])))
        return ", ".join(f"rank {' '.join(numbers)} in {where}" for where, numbers in ranks.items())

    def _stack(self) -> tuple[str, str]:
        """Where the watched thread is, in short and whole."""
        frame = sys._current_frames().get(self._watched)
        if frame is None:
            return "no code of its own", ""
        summary = traceback.extract_stack(frame)
        last = summary[-1]
        return f"{last.name} ({'/'.join(Path(last.filename).parts[-2:])}:{last.lineno})", "".join(summary.format())


def _fresh(folder: Path) -> list[Path]:
    """Stacks of this hang, by rank: not those of the same step before a restart."""
    return [path for path in sorted(folder.glob("rank_*.txt")) if time.time() - path.stat().st_mtime < 60]
