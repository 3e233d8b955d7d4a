"""Versions against each other and against the sets on which something was run (`known_good.yaml`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindspeed_ift.devices.diagnosis.facts import Facts
from mindspeed_ift.devices.diagnosis.finding import Finding

SETS = Path(__file__).parent / "known_good.yaml"


@dataclass(frozen=True)
class KnownSet:
    """Versions that were run together.

    Attributes:
        name: of the set.
        python: minor versions.
        packages: distribution -> version, without what follows a plus sign.
        proved: what was run on them.
    """

    name: str
    python: tuple[str, ...]
    packages: dict[str, str]
    proved: str

    def deviations(self, facts: Facts) -> list[str]:
        """What of the machine is not as here; a line each."""
        found = [f"Python {facts.python}"] if minor(facts.python) not in self.python else []
        for package, version in self.packages.items():
            there = release(facts.packages.get(package, "missing"))
            found += [f"{package} {there} (run: {version})"] if there != version else []
        return found


def known_sets() -> list[KnownSet]:
    """All of `known_good.yaml`, in its order."""
    import yaml

    content = yaml.safe_load(SETS.read_text(encoding="utf-8"))
    return [KnownSet(one["name"], tuple(one["python"]), one["packages"], one["proved"]) for one in content]


def release(version: str) -> str:
    """``2.13.0`` of ``2.13.0+cpu``."""
    return version.split("+")[0]


def minor(version: str) -> str:
    """``3.11`` of ``3.11.7``."""
    return ".".join(version.split(".")[:2])


def check_python(facts: Facts) -> list[Finding]:
    """Python is one of those that were run."""
    known = sorted({one for each in known_sets() for one in each.python}, key=lambda text: int(text.split(".")[1]))
    told = f"{facts.python} on {facts.system}"
    if minor(facts.python) in known:
        return [Finding("python", "green", told)]
    return [Finding("python", "red", told, f"use Python {known[0]} to {known[-1]}: run bash ci/test.sh with it")]


def check_packages(facts: Facts) -> list[Finding]:
    """What every run needs is there; other packages of interest are told."""
    sets = known_sets()
    needed = sets[0].packages
    findings = []
    for package, version in needed.items():
        there = facts.packages.get(package)
        install = f"pip install {package}=={version}"
        if there is None:
            findings.append(Finding(package, "red", "not installed", install))
        elif release(there) in {one.packages[package] for one in sets}:
            findings.append(Finding(package, "green", there))
        else:
            findings.append(Finding(package, "yellow", f"{there}, with which nothing was run; {version} was", install))
    others = [f"{name} {version}" for name, version in facts.packages.items() if name not in (*needed, "torch-npu")]
    return [*findings, Finding("other packages", "green", ", ".join(others) or "none")]


def check_device_package(facts: Facts) -> list[Finding]:
    """torch_npu is that of this torch; nothing to say where there is neither it nor an Ascend device."""
    torch, there = facts.packages.get("torch", "missing"), facts.packages.get("torch-npu")
    install = f"pip install torch-npu=={release(torch)}"
    if there is None:
        if not facts.ascend.devices:
            return []
        return [Finding("torch_npu", "red", "not installed, but there are Ascend devices", install)]
    if release(there).split(".")[:3] != release(torch).split(".")[:3]:
        return [Finding("torch_npu", "red", f"{there} is for another torch than {torch}", install)]
    return [Finding("torch_npu", "green", there)]


def check_set(facts: Facts) -> list[Finding]:
    """Some set has just these versions."""
    sets = known_sets()
    if "torch-npu" in facts.packages:
        sets = [one for one in sets if "torch-npu" in one.packages]
    deviations = {one.name: one.deviations(facts) for one in sets}
    for one in sets:
        if not deviations[one.name]:
            return [Finding("versions together", "green", f"set '{one.name}': {one.proved}")]
    name, nearest = min(deviations.items(), key=lambda item: len(item[1]))
    remedy = f"install the versions of set '{name}' before you look for another cause"
    return [Finding("versions together", "yellow", f"no set that was run; nearest: '{name}', but {nearest[0]}", remedy)]
