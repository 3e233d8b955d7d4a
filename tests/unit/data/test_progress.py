"""How far a run is, told by what has been read of the input."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pytest
from pyarrow import parquet

from mindspeed_ift.config.errors import RunError
from mindspeed_ift.data.hub import HubDataset
from mindspeed_ift.data.ledger import Entry, Ledger, Outcome
from mindspeed_ift.data.progress import Gauge, Progress, SpaceWatch, Standing
from mindspeed_ift.data.records import read_records
from mindspeed_ift.data.staging import require_space

ROWS = [{"text": f"{number:07}" * 3} for number in range(100_000)]


def write(file: Path, count: int) -> Path:
    table = pyarrow.Table.from_pylist(ROWS[:count])
    if file.suffix == ".parquet":
        parquet.write_table(table, file)
    elif file.suffix == ".arrow":
        with pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=1000)
    elif file.suffix == ".feather":
        with pyarrow.ipc.new_file(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=1000)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:count]))
    return file


def entry(file: Path | str, record: int) -> Entry:
    return Entry(str(file), record, Outcome.KEPT, "")


@pytest.mark.parametrize("kind", [".jsonl", ".parquet", ".arrow", ".feather"])
def test_part_of_files_that_are_being_read(tmp_path: Path, kind: str) -> None:
    first, second = write(tmp_path / f"a{kind}", 100_000), write(tmp_path / f"b{kind}", 100_000)
    gauge = Gauge([first, second])
    assert gauge.part() == 0
    records = read_records([first, second])
    for count, expected in ((25_000, 0.125), (75_000, 0.5), (50_000, 0.75), (50_000, 1.0)):
        gauge.add(entry(origin.file, origin.record) for _, origin in itertools.islice(records, count))
        assert gauge.part() == pytest.approx(expected, abs=0.02)
    assert next(records, None) is None and gauge.part() == 1


def test_part_of_a_dataset(tmp_path: Path) -> None:
    gauge = Gauge([HubDataset("mine", ROWS)])
    gauge.add([entry("mine", 25_000)])
    assert gauge.part() == 0.25
    stream = Gauge([HubDataset("mine", iter(ROWS))])
    stream.add([entry("mine", 1)])
    assert stream.part() is None
    assert Gauge([]).part() is None


def test_time_left_is_at_the_rate_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.parquet", 1000)
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    lines: list[str] = []
    ledger = Ledger()
    progress = Progress(ledger, [file], 100, lines.append)
    for record in (50, 100, 250):
        clock[0] += 10
        ledger.read = ledger.kept = record
        progress([entry(file, record)])
    assert lines == [
        "100 records read, 100 kept, 5 records/s, 10% of the input, 0:03:00 left",
        "250 records read, 250 kept, 8 records/s, 25% of the input, 0:01:30 left",
    ]
    resumed = Progress(ledger, [file], 100, lines.append)
    shown: list[Standing] = []
    for record in (500, 600):
        clock[0] += 10
        ledger.read = record
        resumed([entry(file, record)])
    assert lines[2].endswith("25 records/s, 50% of the input")
    assert lines[3].endswith("18 records/s, 60% of the input, 0:01:20 left"), lines[3]
    bar = Progress(ledger, [file], 1, lines.append, shown.append)
    for _ in range(4):
        clock[0] += 0.1
        bar([entry(file, 700)])
    assert len(shown) == 2 and shown[0].part == 0.7 and len(lines) == 4


def test_says_once_that_the_disk_will_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=40 * 2**20))
    lines: list[str] = []
    watch = SpaceWatch(tmp_path, lines.append)
    watch(10 * 2**20, None)
    watch(10 * 2**20, 0.2)
    assert lines == []
    watch(10 * 2**20, 0.1)
    watch(10 * 2**20, 0.1)
    assert lines == [f"at this rate {tmp_path} will be full: about 90 MiB are still to be written, 40 MiB are free"]


def test_room_for_what_will_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**30))
    require_space(tmp_path, 2**30)
    with pytest.raises(RunError, match="has 1,024 MiB free and 1,536 MiB are to be written; free some"):
        require_space(tmp_path, 3 * 2**29)
