"""Files that are filled part by part: whatever the order, the bytes and the checksum of the whole."""

from __future__ import annotations

import itertools
import random
import threading
from pathlib import Path

import pytest
import torch
import xxhash

from mindspeed_ift.checkpoint.placed import Place, PlacedFile, mapped
from mindspeed_ift.config.errors import UserError

PARTS = {"a": torch.arange(100_000), "b": torch.arange(12.0).view(3, 4).T, "c": torch.ones(1).bfloat16()}


def room(path: Path) -> dict[str, Place]:
    """Five bytes before each part, and after the last."""
    places, at = {}, 5
    for name, part in PARTS.items():
        places[name] = Place(at, part.nbytes)
        at += part.nbytes + 5
    path.write_bytes(b"x" * at)
    return places


def whole() -> bytes:
    parts = (part.contiguous().view(torch.uint8).numpy().tobytes() for part in PARTS.values())
    return b"xxxxx" + b"".join(part + b"xxxxx" for part in parts)


@pytest.mark.parametrize("order", itertools.permutations("abc"))
def test_parts_come_in_any_order(tmp_path: Path, order: tuple[str, ...]) -> None:
    path = tmp_path / "file"
    file = PlacedFile(path, room(path), checksum=True)
    for name in order:
        rows = PARTS[name].split(1 if name == "b" else 70_000)  # one tensor after another makes a part
        file.fill(name, rows)
    told = file.finish()
    assert path.read_bytes() == whole() and told == xxhash.xxh3_128(whole()).hexdigest()


def test_a_part_that_is_no_part_of_the_file_is_a_mistake(tmp_path: Path) -> None:
    file = PlacedFile(tmp_path / "file", room(tmp_path / "file"), checksum=True)
    with pytest.raises(AssertionError, match="b"):
        file.fill("b", [PARTS["c"]])
    with pytest.raises(AssertionError, match="a"):
        file.finish()
    file.close()


def test_what_lies_in_a_file_is_read_where_it_lies(tmp_path: Path) -> None:
    path, content = tmp_path / "file", random.Random(1).randbytes(20_000)
    path.write_bytes(content)
    for start, length in ((0, 20_000), (1, 0), (4_095, 2), (4_096, 4_096), (12_345, 7_655)):
        assert bytes(mapped(path, Place(start, length)).tolist()) == content[start : start + length]
    mapped(path, Place(0, 4)).zero_()
    assert path.read_bytes() == content
    with pytest.raises(UserError, match="file is cut short; take an older"):
        mapped(path, Place(12_345, 7_656))


def test_what_is_whole_goes_down_to_the_disk_while_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, down = tmp_path / "file", threading.Event()
    monkeypatch.setattr("mindspeed_ift.checkpoint.placed._STRETCH", 500_000)
    monkeypatch.setattr("os.fdatasync", lambda _: down.set())
    file = PlacedFile(path, room(path), checksum=False)
    file.fill("b", [PARTS["b"]])
    assert not down.wait(0.1)
    file.fill("a", [PARTS["a"]])
    assert down.wait(10)
    file.fill("c", [PARTS["c"]])
    assert file.finish() == "" and path.read_bytes() == whole()
