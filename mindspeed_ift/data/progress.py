"""How far a run is: records, rate, part of the input that has been read, and time left."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindspeed_ift.data.hub import HubDataset
from mindspeed_ift.data.ledger import Entry, Ledger
from mindspeed_ift.data.records import Readable, arrow_batches, kind_of

_SECONDS_BETWEEN_SHOWS = 0.2


@dataclass(frozen=True)
class Standing:
    """How far a run is.

    Attributes:
        read: Records read.
        kept: Samples made of them.
        rate: Records a second, of this run.
        part: Of the input that has been read, from 0 to 1; None where that cannot be told.
        seconds_left: Until all of it is, at the rate so far; None likewise.
    """

    read: int
    kept: int
    rate: float
    part: float | None = None
    seconds_left: float | None = None

    def __str__(self) -> str:
        line = f"{self.read:,} records read, {self.kept:,} kept, {self.rate:,.0f} records/s"
        if self.part is not None:
            line += f", {self.part:.0%} of the input"
        if self.seconds_left is not None:
            minutes, seconds = divmod(round(self.seconds_left), 60)
            line += f", {minutes // 60}:{minutes % 60:02}:{seconds:02} left"
        return line


Show = Callable[[Standing], None]
"""Shows a standing, in place of the one before."""


class Gauge:
    """Which part of the input has been read: of text by the place at which its file stands open, else by rows.

    Args:
        sources: The input.
    """

    def __init__(self, sources: Sequence[Readable]) -> None:
        self._sources = {str(source): source for source in sources}
        self._sizes: dict[str, float] = {}
        self._rows: dict[str, int | None] = {}
        self._last: dict[str, int] = {}
        for name, source in self._sources.items():
            self._sizes[name] = source.stat().st_size if isinstance(source, Path) else 1.0

    def add(self, entries: Iterable[Entry]) -> None:
        """Take note of records that were read, in their order."""
        for entry in entries:
            self._last[entry.file] = entry.record

    def part(self) -> float | None:
        """From 0 to 1; None where it cannot be told."""
        places = _open_places()
        read = 0.0
        for name, record in self._last.items():
            rows = self._rows_of(name)
            if rows:
                read += self._sizes[name] * min(record / rows, 1.0)
            elif isinstance(self._sources[name], Path):
                read += places.get(os.path.realpath(name), self._sizes[name])
            else:
                return None
        total = sum(self._sizes.values())
        return min(read / total, 1.0) if total else None

    def _rows_of(self, name: str) -> int | None:
        if name not in self._rows:
            self._rows[name] = _count_rows(self._sources[name])
        return self._rows[name]


class Progress:
    """Tells how far a run is, after each chunk if it is time to.

    Args:
        ledger: The account, which grows.
        sources: The input.
        interval: Records between two lines.
        report: Takes a line.
        show: Takes the standing several times a second, instead of lines; None for lines.
    """

    def __init__(
        self,
        ledger: Ledger,
        sources: Sequence[Readable],
        interval: int,
        report: Callable[[str], None],
        show: Show | None = None,
    ) -> None:
        self._ledger, self._interval, self._report, self._show = ledger, interval, report, show
        self._gauge = Gauge(sources)
        self._started, self._before = time.monotonic(), ledger.read
        self._first: tuple[float, float] | None = None
        self._told, self._shown = ledger.read // interval, 0.0

    def __call__(self, entries: Iterable[Entry]) -> None:
        """Tell, if it is time to.

        Args:
            entries: The rows of the last chunk in the ledger.
        """
        self._gauge.add(entries)
        now = time.monotonic()
        if self._show is not None:
            if now - self._shown >= _SECONDS_BETWEEN_SHOWS:
                self._shown = now
                self._show(self.standing())
        elif self._ledger.read // self._interval > self._told:
            self._told = self._ledger.read // self._interval
            self._report(str(self.standing()))

    def standing(self) -> Standing:
        """How far the run is now."""
        now, read, part = time.monotonic(), self._ledger.read, self._gauge.part()
        rate = (read - self._before) / max(now - self._started, 1e-9)
        left = None
        if part is not None:
            # Records that an earlier run finished were passed over in no time, so the clock starts behind them.
            then, part_then = self._first = self._first or (self._started, 0.0 if not self._before else part)
            if part > part_then:
                left = (now - then) / (part - part_then) * (1 - part)
        return Standing(read, self._ledger.kept, rate, part, left)


class SpaceWatch:
    """Says once that the disk will be full before the run is done, while there is time to make room.

    Args:
        folder: Where the run writes.
        report: Takes the line.
    """

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self._folder, self._report, self._told = folder, report, False

    def __call__(self, written: int, part: float | None) -> None:
        """Look.

        Args:
            written: Bytes so far.
            part: Of the input of which they were made; None looks at nothing.
        """
        if self._told or not part:
            return
        left, free = written * (1 - part) / part, shutil.disk_usage(self._folder).free
        if left > free:
            self._told = True
            self._report(
                f"at this rate {self._folder} will be full: about {left / 2**20:,.0f} MiB are still to be written,"
                f" {free / 2**20:,.0f} MiB are free"
            )


def _count_rows(source: Readable) -> int | None:
    """Records of a source that says how many it has; None for text and streams."""
    if isinstance(source, HubDataset):
        return len(source.dataset) if hasattr(source.dataset, "__len__") else None
    kind = kind_of(source)
    if kind not in (".parquet", ".arrow", ".feather"):
        return None
    import pyarrow
    from pyarrow import parquet

    try:
        if kind == ".parquet":
            return parquet.read_metadata(source).num_rows
        with pyarrow.memory_map(str(source)) as mapped:
            return sum(batch.num_rows for batch in arrow_batches(mapped)[0])
    except (OSError, pyarrow.ArrowException):
        return None  # its reader will say what is wrong


def _open_places() -> dict[str, int]:
    """Real path -> place at which this process has it open (Linux; nothing elsewhere)."""
    places = {}
    for descriptor in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:
        try:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            first = Path(f"/proc/self/fdinfo/{descriptor}").read_text().partition("\n")[0]
        except OSError:
            continue  # closed meanwhile
        if os.path.isabs(path) and first.startswith("pos:"):
            # The smaller one reads records; the other is the checksum's.
            places[path] = min(int(first[4:]), places.get(path, sys.maxsize))
    return places
