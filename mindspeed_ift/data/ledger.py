"""What became of every record: read, kept, cut, dropped, by reason and with the first origins of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mindspeed_ift.data.records import Origin

_ORIGINS = 3


@dataclass
class Tally:
    """How many records, and where the first of them stand."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count those of ``other`` too, which come later."""
        self.count += other.count
        self.first = (self.first + other.first)[:_ORIGINS]


@dataclass
class Ledger:
    """The account of a run.

    Attributes:
        read: Records read.
        kept: Samples made of them.
        noted: Reason -> samples that are kept, but not as they were (cut, say).
        dropped: Reason -> records that are no sample.
        columns: Columns seen in any record.
        filled: Those of them that held something.
    """

    read: int = 0
    kept: int = 0
    noted: dict[str, Tally] = field(default_factory=dict)
    dropped: dict[str, Tally] = field(default_factory=dict)
    columns: set[str] = field(default_factory=set)
    filled: set[str] = field(default_factory=set)

    def keep(self, origin: Origin, notes: Iterable[str] = ()) -> None:
        """Count a sample."""
        self.kept += 1
        for note in notes:
            self.noted.setdefault(note, Tally()).add(Tally(1, [str(origin)]))

    def drop(self, origin: Origin, reason: str) -> None:
        """Count a record that is no sample."""
        self.dropped.setdefault(reason, Tally()).add(Tally(1, [str(origin)]))

    def merge(self, later: Ledger) -> None:
        """Add the account of records that come after these."""
        self.read += later.read
        self.kept += later.kept
        for mine, theirs in ((self.noted, later.noted), (self.dropped, later.dropped)):
            for reason, tally in theirs.items():
                mine.setdefault(reason, Tally()).add(tally)
        self.columns |= later.columns
        self.filled |= later.filled

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "read": self.read,
            "kept": self.kept,
            "noted": {reason: vars(tally) for reason, tally in sorted(self.noted.items())},
            "dropped": {reason: vars(tally) for reason, tally in sorted(self.dropped.items())},
        }

    def rows(self) -> list[tuple[str, int, str]]:
        """For the table: what, how many, where first."""
        rows = [("read", self.read, ""), ("kept", self.kept, "")]
        for kind, tallies in (("  kept, but: ", self.noted), ("dropped: ", self.dropped)):
            for reason, tally in sorted(tallies.items(), key=lambda item: -item[1].count):
                more = ", ..." if tally.count > len(tally.first) else ""
                rows.append((kind + reason, tally.count, ", ".join(tally.first) + more))
        return rows
