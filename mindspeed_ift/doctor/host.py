"""The machine around the devices: shared memory, disks, memory, limits."""

from __future__ import annotations

from mindspeed_ift.devices.diagnosis.facts import Disk, Facts
from mindspeed_ift.devices.diagnosis.finding import Finding, Level

_MIB, _GIB = 2**20, 2**30
_SHARED_MEMORY = (64 * _MIB, _GIB)
_DISK = (_GIB, 20 * _GIB)
_MEMORY = (2 * _GIB, 8 * _GIB)
_LIMITS = {
    "open files": (256, 4096, "ulimit -n 65535"),
    "processes": (256, 4096, "ulimit -u 65535"),
    "address space": (16 * _GIB, None, "ulimit -v unlimited"),
    "file size": (_GIB, None, "ulimit -f unlimited"),
}
"""Name of a limit -> red below, yellow below (None: unless unlimited), the remedy."""


def check_shared_memory(facts: Facts) -> list[Finding]:
    """/dev/shm, through which ranks of a machine exchange data."""
    remedy = "start the container with --shm-size=16g or --ipc=host; or delete what others left in /dev/shm"
    if facts.shared_memory is None:
        return [Finding("/dev/shm", "red", "there is none", remedy)]
    return [_room("/dev/shm", facts.shared_memory, _SHARED_MEMORY, remedy)]


def check_disks(facts: Facts) -> list[Finding]:
    """Room where a run writes."""
    return [
        _room(f"disk of {name}", disk, _DISK, "free some, or choose another place")
        for name, disk in facts.disks.items()
    ]


def check_memory(facts: Facts) -> list[Finding]:
    """Memory of the host, and its cores."""
    if facts.memory is None:
        return [Finding("host memory", "yellow", "could not be read", "look at /proc/meminfo")]
    remedy = "end other processes, or give the container more memory"
    return [
        _room("host memory", facts.memory, _MEMORY, remedy),
        Finding("cores", "green", f"{facts.cpus} for this process"),
    ]


def check_limits(facts: Facts, kind: str) -> list[Finding]:
    """Limits of the shell (ulimit); locked memory matters to network cards of accelerators."""
    findings = []
    for name, (least, enough, remedy) in _LIMITS.items():
        if name not in facts.limits:
            continue
        value = facts.limits[name]
        level: Level = "green"
        if value is not None:
            level = "red" if value < least else "yellow" if enough is None or value < enough else "green"
        told = "unlimited" if value is None else f"{value:,}"
        findings.append(Finding(f"limit of {name}", level, told, remedy if level != "green" else ""))
    locked = facts.limits.get("locked memory")
    if kind != "cpu" and locked is not None:
        remedy = "ulimit -l unlimited (a container: --ulimit memlock=-1), or RDMA between machines fails"
        findings.append(Finding("limit of locked memory", "yellow", f"{locked:,} bytes", remedy))
    return findings


def _room(name: str, room: Disk, steps: tuple[int, int], remedy: str) -> Finding:
    level: Level = "red" if room.free < steps[0] else "yellow" if room.free < steps[1] else "green"
    told = f"{room.free / _GIB:.2f} of {room.total / _GIB:.2f} GiB free"
    return Finding(name, level, told, remedy if level != "green" else "")
