"""Every record has a row in the parquet file, however often its writing was interrupted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data import ledger_file
from mindspeed_ift.data.ledger import Entry, Outcome
from mindspeed_ift.data.ledger_file import LedgerFile, join_ledgers
from mindspeed_ift.data.packing import Places

ENTRIES = [
    Entry("a.json", 1, Outcome.KEPT, "", 1, 9, 4, 0),
    Entry("a.json", 2, Outcome.CUT, "too long", 1, 5, 1, 3),
    Entry("b.json", 1, Outcome.DROPPED, "no text"),
    Entry("b.json", 2, Outcome.SPLIT, "too long", 3, 2**33, 1, 0),
]


def rows(path: Path) -> list[Entry]:
    found = parquet.read_table(path).to_pylist()
    return [Entry(**{**row, "outcome": Outcome(row["outcome"]), "reason": row["reason"] or ""}) for row in found]


def test_rows_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_file, "_ROWS_AT_ONCE", 3)
    file = LedgerFile(tmp_path)
    file.append(ENTRIES[:1])
    file.append([])
    file.append(ENTRIES[1:])
    path = tmp_path / "ledger.parquet"
    mark = file.write_parquet(path)
    assert rows(path) == ENTRIES and mark["bytes"] == path.stat().st_size
    table = parquet.read_table(path)
    assert table.column_names == [
        "file", "record", "outcome", "reason", "samples", "tokens", "learnt_tokens", "cut_tokens",
    ]  # fmt: skip
    assert table["reason"].null_count == 1 and "dictionary" in str(table.schema.field("file").type)


def test_places_of_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of as many numbers as a record has samples, also where blocks end in between and ledgers are joined."""
    monkeypatch.setattr(ledger_file, "_ROWS_AT_ONCE", 3)
    file = LedgerFile(tmp_path)
    file.append(ENTRIES)
    places = Places(np.array([5, 0, 1, 1, 0], np.int32), np.array([0, 9, 0, 8, 0], np.int32))
    file.write_parquet(tmp_path / "ledger.parquet", places)
    found = parquet.read_table(tmp_path / "ledger.parquet")
    assert found["rows"].to_pylist() == [[5], [0], [], [1, 1, 0]]
    assert found["positions"].to_pylist() == [[0], [9], [], [0, 8, 0]]
    join_ledgers([(tmp_path / "ledger.parquet", count) for count in (6, 9, 1)], tmp_path / "joined.parquet")
    joined = parquet.read_table(tmp_path / "joined.parquet")
    assert joined["rows"].to_pylist()[4:] == [[11], [6], [], [7, 7, 6], [20], [15], [], [16, 16, 15]]
    assert joined["positions"].to_pylist() == 3 * found["positions"].to_pylist()
    with pytest.raises(UserError, match="in.jsonl is no ledger"):
        (tmp_path / "in.jsonl").write_text("x")
        join_ledgers([(tmp_path / "in.jsonl", 1)], tmp_path / "joined.parquet")


def test_going_on_gives_the_same_bytes(tmp_path: Path) -> None:
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    for folder in (whole, parts):
        folder.mkdir()
    one = LedgerFile(whole)
    one.append(ENTRIES)
    one.write_parquet(whole / "ledger.parquet")
    file = LedgerFile(parts)
    file.append(ENTRIES[:2])
    state, marks = file.state(), file.marks()
    file.append(ENTRIES[3:])
    file.close()
    again = LedgerFile(parts, state, marks)
    again.append(ENTRIES[2:])
    again.write_parquet(parts / "ledger.parquet")
    assert (whole / "ledger.parquet").read_bytes() == (parts / "ledger.parquet").read_bytes()


def test_no_rows(tmp_path: Path) -> None:
    LedgerFile(tmp_path).write_parquet(tmp_path / "ledger.parquet")
    assert rows(tmp_path / "ledger.parquet") == []
