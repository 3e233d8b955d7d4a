"""Driver, firmware and toolkit of accelerators that are whole, missing or not sourced."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mindspeed_ift.devices.diagnosis.facts import Ascend, Facts
from mindspeed_ift.devices.diagnosis.software import check_ascend, check_choice, check_nvidia

ASCEND = Ascend(devices=8, driver="24.1", firmware="7.5", cann="9.0", cann_folder="/opt/cann", sourced=True)


def levels(ascend: Ascend, **packages: str) -> dict[str, str]:
    return {one.name: one.level for one in check_ascend(Facts(ascend=ascend, packages=packages))}


def test_nothing_is_said_where_there_is_no_accelerator() -> None:
    assert check_ascend(Facts()) == [] and check_nvidia(Facts()) == [] and check_choice(Facts(), "cpu") == []


def test_a_whole_ascend_machine() -> None:
    assert levels(ASCEND) == {"CANN": "yellow", "Ascend driver": "green", "Ascend firmware": "green"}


@pytest.mark.parametrize(
    ("change", "name", "level", "remedy"),
    [
        ({"cann": ""}, "CANN", "red", "install CANN"),
        ({"sourced": False}, "CANN", "red", "source "),
        ({"driver": ""}, "Ascend driver", "red", "driver"),
        ({"devices": 0}, "Ascend driver", "red", "driver"),
        ({"firmware": ""}, "Ascend firmware", "yellow", "firmware"),
    ],
)
def test_a_part_is_missing(change: dict[str, object], name: str, level: str, remedy: str) -> None:
    facts = Facts(ascend=replace(ASCEND, **change), packages={"torch-npu": "2.13.0"})
    (finding,) = [one for one in check_ascend(facts) if one.name == name]
    assert finding.level == level and remedy in finding.remedy


def test_torch_npu_without_anything_of_ascend_is_red() -> None:
    assert set(levels(Ascend(), **{"torch-npu": "2.13.0"}).values()) == {"red"}


def test_nvidia() -> None:
    (whole,) = check_nvidia(Facts(nvidia_devices=1, nvidia_driver="550.54"))
    (bare,) = check_nvidia(Facts(nvidia_devices=1))
    assert (whole.level, bare.level) == ("green", "red") and "550.54" in whole.found


@pytest.mark.parametrize(("facts", "words"), [(Facts(ascend=ASCEND), "torch-npu"), (Facts(nvidia_devices=2), "CUDA")])
def test_an_accelerator_that_torch_does_not_find(facts: Facts, words: str) -> None:
    (finding,) = check_choice(facts, "cpu")
    assert finding.level == "red" and words in finding.remedy
    (asked,) = check_choice(replace(facts, environment={"MINDSPEED_IFT_DEVICE": "cpu"}), "cpu")
    assert asked.level == "yellow"
    assert check_choice(facts, "npu") == []
