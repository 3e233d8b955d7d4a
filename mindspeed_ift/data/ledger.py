"""What became of every record: kept, cut, split or dropped, why, and where it stands; totals, and a row for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from mindspeed_ift.data.records import Origin

_ORIGINS = 3
_REASONS = 5
_TOTALS = ("read", "kept", "tokens", "learnt_tokens", "malformed")


class Outcome(str, Enum):
    """What can become of a record."""

    KEPT = "kept"
    """Whole, as one sample."""
    CUT = "cut"
    """As one sample that lacks some of its tokens."""
    SPLIT = "split"
    """As several samples."""
    DROPPED = "dropped"
    """It is in no sample."""


class Entry(NamedTuple):
    """The row of one record.

    Attributes:
        file: Where it stands.
        record: Its number there, from 1.
        outcome: What became of it.
        reason: Why it is not whole, or what else is to be known; "" for nothing.
        samples: Samples made of it.
        tokens: Tokens of it in the dataset.
        learnt_tokens: Those of them that are learnt.
        cut_tokens: Tokens of it that are not in the dataset, where they are known.
    """

    file: str
    record: int
    outcome: Outcome
    reason: str
    samples: int = 0
    tokens: int = 0
    learnt_tokens: int = 0
    cut_tokens: int = 0


@dataclass
class Tally:
    """How many records, the tokens they lost, and where the first of them stand."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    cut_tokens: int = 0

    def add(self, other: Tally) -> None:
        """Count those of ``other`` too, which come later."""
        self.count += other.count
        self.first = (self.first + other.first)[:_ORIGINS]
        self.cut_tokens += other.cut_tokens


@dataclass
class Ledger:
    """The account of some records, or of a run.

    Attributes:
        read: Records read.
        kept: Samples made of them.
        tokens: Of these samples.
        learnt_tokens: Those of them that are learnt.
        malformed: Dropped records that are no conversation or text, as opposed to those that a rule leaves out.
        noted: Reason -> samples that are kept, but not as they were (cut, say).
        dropped: Reason -> records that are no sample.
        columns: Columns seen in any record.
        filled: Those of them that held something.
        entries: A row for each record; only of the records of one chunk, a total keeps none.
    """

    read: int = 0
    kept: int = 0
    tokens: int = 0
    learnt_tokens: int = 0
    malformed: int = 0
    noted: dict[str, Tally] = field(default_factory=dict)
    dropped: dict[str, Tally] = field(default_factory=dict)
    columns: set[str] = field(default_factory=set)
    filled: set[str] = field(default_factory=set)
    entries: list[Entry] = field(default_factory=list)

    def keep(
        self,
        origin: Origin,
        notes: Iterable[str] = (),
        *,
        samples: int = 1,
        tokens: int = 0,
        learnt_tokens: int = 0,
        cut_tokens: int = 0,
    ) -> None:
        """Count a record that is in the dataset.

        Args:
            origin: Where it stands.
            notes: What is to be known of it, a reason each; the first says why it was cut, if it was.
            samples, tokens, learnt_tokens, cut_tokens: See `Entry`.
        """
        self.kept += samples
        self.tokens += tokens
        self.learnt_tokens += learnt_tokens
        notes = tuple(notes)
        for number, note in enumerate(notes):
            self.noted.setdefault(note, Tally()).add(Tally(1, [str(origin)], 0 if number else cut_tokens))
        outcome = Outcome.SPLIT if samples > 1 else Outcome.CUT if cut_tokens else Outcome.KEPT
        self.entries.append(Entry(*origin, outcome, "; ".join(notes), samples, tokens, learnt_tokens, cut_tokens))

    def drop(self, origin: Origin, reason: str, *, malformed: bool = True, cut_tokens: int = 0) -> None:
        """Count a record that is no sample.

        Args:
            origin: Where it stands.
            reason: Why.
            malformed: It is the record's fault, not that of a rule.
            cut_tokens: What it would have been, where that is known.
        """
        self.malformed += malformed
        self.dropped.setdefault(reason, Tally()).add(Tally(1, [str(origin)], cut_tokens))
        self.entries.append(Entry(*origin, Outcome.DROPPED, reason, cut_tokens=cut_tokens))

    def merge(self, later: Ledger) -> None:
        """Add the account of records that come after these; their rows stay with them."""
        self.read += later.read
        self.kept += later.kept
        self.tokens += later.tokens
        self.learnt_tokens += later.learnt_tokens
        self.malformed += later.malformed
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
            "malformed": self.malformed,
            "noted": {reason: vars(tally) for reason, tally in sorted(self.noted.items())},
            "dropped": {reason: vars(tally) for reason, tally in sorted(self.dropped.items())},
        }

    def state(self) -> dict[str, Any]:
        """All of a total, as JSON has it."""
        totals = {name: getattr(self, name) for name in _TOTALS}
        return {**self.as_dict(), **totals, "columns": sorted(self.columns), "filled": sorted(self.filled)}

    @staticmethod
    def from_state(state: dict[str, Any]) -> Ledger:
        """The total of which `state` told."""
        tallies = {
            kind: {reason: Tally(**tally) for reason, tally in state[kind].items()} for kind in ("noted", "dropped")
        }
        sets = {name: set(state[name]) for name in ("columns", "filled")}
        return Ledger(**{name: state[name] for name in _TOTALS}, **tallies, **sets)

    def rows(self) -> list[tuple[str, int, str]]:
        """For the table: what, how many, where first."""
        records = self.read - sum(tally.count for tally in self.dropped.values())
        kept = "kept" if records == self.kept else f"kept, as {self.kept:,} samples"
        rows = [("read", self.read, ""), (kept, records, "")]
        for kind, tallies in (("  kept, but: ", self.noted), ("dropped: ", self.dropped)):
            for reason, tally in sorted(tallies.items(), key=lambda item: -item[1].count):
                more = ", ..." if tally.count > len(tally.first) else ""
                lost = f", {tally.cut_tokens:,} tokens lost" if tally.cut_tokens else ""
                rows.append((kind + reason + lost, tally.count, ", ".join(tally.first) + more))
        return rows

    def reasons(self) -> str:
        """Why records were dropped, the most frequent first, on one line."""
        found = sorted(self.dropped.items(), key=lambda item: -item[1].count)
        named = [f"{tally.count} {reason} (first {tally.first[0]})" for reason, tally in found[:_REASONS]]
        return ", ".join([*named, *(["..."] if len(found) > _REASONS else [])])


def joined_account(accounts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The account of several runs one after the other, as `Ledger.as_dict` tells it."""
    total = Ledger()
    for account in accounts:
        nothing = dict.fromkeys(_TOTALS, 0) | {"columns": (), "filled": ()}
        total.merge(Ledger.from_state(nothing | account))
    return total.as_dict()
