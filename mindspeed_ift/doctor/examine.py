"""All checks in their order; nothing that one of them does ends the others."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mindspeed_ift.devices.diagnosis import environment, network, software, versions
from mindspeed_ift.devices.diagnosis.facts import Facts, gather
from mindspeed_ift.devices.diagnosis.finding import Finding, Told, guarded
from mindspeed_ift.doctor import host, processes

SECONDS = 120.0
"""A process of the doctor may take: torch on a busy network disk takes its time."""

_PROBES = "mindspeed_ift.doctor.probing"
_BELONGING = "mindspeed_ift.doctor.belonging"
_IMPORT_REMEDY = (
    "run what it says in a python of its own; install the versions above; source CANN's set_env.sh on Ascend"
)
_PLAN_REMEDY = "give these flags to tune with --dry-run --debug"


def examine(words: list[str], seconds: float = SECONDS) -> list[Finding]:
    """Look at this machine, and at what flags name.

    Args:
        words: flags of a training run; none: the machine alone.
        seconds: that each process of ours may take.
    """
    findings = []
    with ThreadPoolExecutor() as pool:
        device = pool.submit(processes.run_apart, _PROBES, [], "import torch", _IMPORT_REMEDY, seconds)
        plan = pool.submit(processes.run_apart, _BELONGING, words, "flags", _PLAN_REMEDY, seconds) if words else None
        probed = device.result()
        belonging = plan.result().findings if plan else []
    try:
        facts = gather(_folders(words))
    except Exception as error:  # noqa: BLE001 - a machine like none that we know; go on with what the processes said
        findings.append(Finding("facts", "red", f"{type(error).__name__}: {error}", "report it with all of this text"))
        facts = Facts(environment=dict(os.environ))
    findings += check_facts(facts, probed)
    findings += probed.findings
    findings += guarded("collective", lambda: _collective(probed, seconds))
    return [*findings, *belonging]


def check_facts(facts: Facts, probed: Told) -> list[Finding]:
    """All that follows from facts without a device.

    Args:
        facts: of the machine.
        probed: what the process with the device told.
    """
    kind = probed.facts.get("kind", "cpu")
    checks: dict[str, Callable[[], list[Finding]]] = {
        "python": lambda: versions.check_python(facts),
        "packages": lambda: versions.check_packages(facts),
        "package of the device": lambda: versions.check_device_package(facts),
        "versions together": lambda: versions.check_set(facts),
        "Ascend": lambda: software.check_ascend(facts),
        "NVIDIA": lambda: software.check_nvidia(facts),
        "/dev/shm": lambda: host.check_shared_memory(facts),
        "disks": lambda: host.check_disks(facts),
        "host memory": lambda: host.check_memory(facts),
        "limits": lambda: host.check_limits(facts, kind),
        "host name": lambda: network.check_host(facts),
        "interfaces": lambda: network.check_interfaces(facts, kind),
        "ports": lambda: network.check_ports(facts, kind),
        "timeouts": lambda: network.check_timeouts(facts, kind),
        "environment": lambda: environment.check_environment(facts, kind, probed.facts.get("environment", {})),
    }
    return [finding for name, check in checks.items() for finding in guarded(name, check)]


def _collective(probed: Told, seconds: float) -> list[Finding]:
    if "devices" not in probed.facts:
        return [Finding("collective", "yellow", "not tried: there is no device to try it on", "mend what is red above")]
    ranks = 2 if probed.facts["kind"] == "cpu" else probed.facts["devices"]
    return processes.try_collective(ranks, seconds)


def _folders(words: list[str]) -> dict[str, Path]:
    folders = {"this folder": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    for before, word in zip(words, words[1:]):
        if before == "--save":
            folders["--save"] = Path(word)
    return folders
