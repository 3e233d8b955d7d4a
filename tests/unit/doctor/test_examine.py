"""All checks together, in worlds that are broken: each world has its red line, and nothing is thrown."""

from __future__ import annotations

import pytest

from mindspeed_ift.devices.diagnosis import versions
from mindspeed_ift.devices.diagnosis.facts import Disk, Facts
from mindspeed_ift.devices.diagnosis.finding import Finding, Told, worst
from mindspeed_ift.doctor import examine, processes

ROOM = Disk(2**40, 2**39)
GOOD = {
    "packages": {"torch": "2.13.0", "megatron-core": "0.16.1", "transformers": "5.2.0"},
    "shared_memory": ROOM,
    "memory": ROOM,
    "disks": {"this folder": ROOM},
    "limits": {"open files": 65535},
}
PROBED = Told([Finding("device", "green", "cpu")], {"kind": "cpu", "devices": 1}, None)


def red(**changes: object) -> list[str]:
    return [one.name for one in examine.check_facts(Facts(**{**GOOD, **changes}), PROBED) if one.level == "red"]


def test_a_good_world() -> None:
    assert worst(examine.check_facts(Facts(**GOOD), PROBED)) == "green"


def test_broken_worlds() -> None:
    assert red(packages={}) == ["torch", "megatron-core", "transformers"]
    assert red(shared_memory=Disk(2**26, 0)) == ["/dev/shm"]
    assert red(limits={"open files": 16}) == ["limit of open files"]
    assert red(environment={"GLOO_SOCKET_IFNAME": "eth9"}) == ["GLOO_SOCKET_IFNAME"]


def test_a_check_that_breaks_does_not_take_the_others_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[versions.KnownSet]:
        raise ModuleNotFoundError("No module named 'yaml'", name="yaml")

    monkeypatch.setattr(versions, "known_sets", broken)
    assert red(shared_memory=None) == ["python", "packages", "versions together", "/dev/shm"]


def test_without_a_device_no_collective_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Told([Finding("import torch", "red", "its process was killed", "mend")], {}, "import torch")
    monkeypatch.setattr(processes, "run_apart", lambda *words: broken)
    monkeypatch.setattr(examine, "gather", lambda folders: 1 / 0)
    findings = {one.name: one for one in examine.examine([])}
    assert findings["collective"].level == "yellow" and findings["import torch"].level == "red"
    assert findings["facts"].level == "red" and "ZeroDivisionError" in findings["facts"].found
