"""Machines that are too small, each in its own way."""

from __future__ import annotations

import pytest

from mindspeed_ift.devices.diagnosis.facts import Disk, Facts
from mindspeed_ift.doctor.host import check_disks, check_limits, check_memory, check_shared_memory

GIB = 2**30


@pytest.mark.parametrize(
    ("room", "level"),
    [(None, "red"), (Disk(2**26, 2**20), "red"), (Disk(2**29, 2**29), "yellow"), (Disk(16 * GIB, 15 * GIB), "green")],
)
def test_shared_memory(room: Disk | None, level: str) -> None:
    (finding,) = check_shared_memory(Facts(shared_memory=room))
    assert finding.level == level
    assert ("--shm-size" in finding.remedy) == (level != "green")


def test_disks() -> None:
    rooms = {"a": Disk(100 * GIB, 99 * GIB), "b": Disk(100 * GIB, 5 * GIB), "c": Disk(100 * GIB, 1000)}
    assert [(one.name, one.level) for one in check_disks(Facts(disks=rooms))] == [
        ("disk of a", "green"),
        ("disk of b", "yellow"),
        ("disk of c", "red"),
    ]


def test_memory() -> None:
    levels = [
        check_memory(Facts(memory=room))[0].level for room in (None, Disk(64 * GIB, GIB), Disk(64 * GIB, 60 * GIB))
    ]
    assert levels == ["yellow", "red", "green"]


def limits(kind: str = "cpu", **values: int | None) -> dict[str, str]:
    named = {name.replace("_", " "): value for name, value in values.items()}
    return {one.name: one.level for one in check_limits(Facts(limits=named), kind)}


def test_limits() -> None:
    assert limits(open_files=65535, address_space=None, file_size=None) == {
        "limit of open files": "green",
        "limit of address space": "green",
        "limit of file size": "green",
    }
    assert limits(open_files=1024) == {"limit of open files": "yellow"}
    assert limits(open_files=64) == {"limit of open files": "red"}
    assert limits(file_size=1024) == {"limit of file size": "red"}
    (finding,) = check_limits(Facts(limits={"open files": 1024}), "cpu")
    assert finding.remedy == "ulimit -n 65535"


def test_locked_memory_matters_to_accelerators_only() -> None:
    assert limits("cpu", locked_memory=8192) == {} and limits("npu", locked_memory=None) == {}
    assert limits("npu", locked_memory=8192) == {"limit of locked memory": "yellow"}
