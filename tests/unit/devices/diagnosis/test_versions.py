"""Versions against known sets: of worlds that are right, wrong, unknown or incomplete."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mindspeed_ift.devices.diagnosis.facts import Ascend, Facts
from mindspeed_ift.devices.diagnosis.versions import (
    check_device_package,
    check_packages,
    check_python,
    check_set,
    known_sets,
)

GOOD = Facts(
    python="3.11.7", packages={"torch": "2.13.0+cpu", "megatron-core": "0.16.1", "transformers": "5.2.0", "numpy": "2"}
)


def with_packages(**versions: str | None) -> Facts:
    named = {name.replace("_", "-"): version for name, version in versions.items()}
    packages = {**GOOD.packages, **named}
    return replace(GOOD, packages={name: version for name, version in packages.items() if version is not None})


@pytest.mark.parametrize(
    ("python", "level"), [("3.10.1", "green"), ("3.12.9", "green"), ("3.9.2", "red"), ("3.13.0", "red")]
)
def test_python(python: str, level: str) -> None:
    (finding,) = check_python(replace(GOOD, python=python))
    assert finding.level == level and python in finding.found
    assert bool(finding.remedy) == (level == "red")


def test_packages_of_a_good_world() -> None:
    findings = check_packages(GOOD)
    assert [one.name for one in findings] == ["torch", "megatron-core", "transformers", "other packages"]
    assert {one.level for one in findings} == {"green"}
    assert findings[-1].found == "numpy 2"


def test_a_package_is_missing() -> None:
    found = {one.name: one for one in check_packages(with_packages(megatron_core=None))}
    assert found["megatron-core"].level == "red"
    assert found["megatron-core"].remedy == "pip install megatron-core==0.16.1"


def test_a_version_was_never_run() -> None:
    found = {one.name: one for one in check_packages(with_packages(transformers="4.51.0"))}
    assert found["transformers"].level == "yellow" and "4.51.0" in found["transformers"].found
    (together,) = check_set(with_packages(transformers="4.51.0"))
    assert together.level == "yellow" and "transformers 4.51.0 (run: 5.2.0)" in together.found and together.remedy


def test_versions_of_any_set_are_good_and_their_mixture_is_told() -> None:
    newest = next(one for one in known_sets() if one.name == "newest")
    facts = replace(GOOD, python="3.12.1", packages=newest.packages)
    assert {one.level for one in [*check_packages(facts), *check_set(facts)]} == {"green"}
    mixed = replace(facts, packages={**newest.packages, "transformers": GOOD.packages["transformers"]})
    assert {one.level for one in check_packages(mixed)} == {"green"}
    assert [one.level for one in check_set(mixed)] == ["yellow"]


def test_a_set_that_was_run_says_what_was_proved() -> None:
    (together,) = check_set(GOOD)
    assert together.level == "green" and "every test" in together.found
    (together,) = check_set(with_packages(torch_npu="2.13.0"))
    assert together.level == "green" and "no device" in together.found


def test_torch_npu() -> None:
    assert check_device_package(GOOD) == []
    (missing,) = check_device_package(replace(GOOD, ascend=Ascend(devices=8)))
    assert missing.level == "red" and missing.remedy == "pip install torch-npu==2.13.0"
    (other,) = check_device_package(with_packages(torch_npu="2.7.1.post2"))
    assert other.level == "red" and other.remedy == "pip install torch-npu==2.13.0"
    (same,) = check_device_package(with_packages(torch_npu="2.13.0.post1"))
    assert same.level == "green"


def test_the_first_set_is_what_is_pinned_and_the_ranges_allow_every_set() -> None:
    root = Path(__file__).resolve().parents[4]
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    first, *_ = known_sets()
    assert {f"{name}=={version}" for name, version in first.packages.items()} <= set(lines)
    tree = ast.parse((root / "setup.py").read_text(encoding="utf-8"))
    asked = next(node for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "DEPENDENCIES")
    ranges = {need.name: need.specifier for need in map(Requirement, ast.literal_eval(asked.value))}
    pinned = {need.name: need.specifier for need in map(Requirement, [line for line in lines if "==" in line])}
    assert all("==" not in str(ranges[name]) for name in pinned)
    for one in known_sets():
        own = {name: version for name, version in one.packages.items() if name in ranges}
        assert len(own) >= 3 and all(version in ranges[name] for name, version in own.items())
