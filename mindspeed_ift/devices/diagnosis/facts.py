"""What is known of a machine without torch and without a device: read once, and given to the checks.

Only the standard library is used: the doctor must speak where nothing else can be imported.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from mindspeed_ift.devices.megatron_names import installed_version

Read = TypeVar("Read")

PACKAGES = (
    "torch",
    "torch-npu",
    "megatron-core",
    "transformers",
    "einops",
    "tokenizers",
    "safetensors",
    "datasets",
    "tyro",
    "numpy",
    "pyarrow",
    "PyYAML",
    "mindspeed",
    "flash-attn",
    "liger-kernel",
    "transformer-engine",
)
"""Distributions whose versions are told."""


@dataclass(frozen=True)
class Disk:
    """Room of a file system, in bytes."""

    total: int
    free: int


@dataclass(frozen=True)
class Ascend:
    """What lies on the disk of an Ascend machine.

    Attributes:
        devices: nodes /dev/davinci0 and so on.
        driver: its version, or empty.
        firmware: its version, or empty.
        cann: version of the toolkit, or empty.
        cann_folder: where it was found, or empty.
        sourced: whether its set_env.sh was sourced.
    """

    devices: int = 0
    driver: str = ""
    firmware: str = ""
    cann: str = ""
    cann_folder: str = ""
    sourced: bool = False


@dataclass(frozen=True)
class Facts:
    """A machine as it was found; tests make others.

    Attributes:
        python: version.
        system: operating system and machine.
        cpus: that this process may use.
        packages: distribution -> version, of those that are installed.
        environment: variables.
        limits: name of a resource limit -> soft limit; None: unlimited.
        shared_memory: /dev/shm; None: there is none.
        disks: what a folder is for -> its room.
        memory: of the host, or of the container where that is less.
        interfaces: names of network interfaces.
        host: name of this machine.
        host_resolves: whether that name has an address.
        port_free: whether a port of this machine can be bound.
        ascend: driver, firmware and toolkit.
        nvidia_devices: nodes /dev/nvidia0 and so on.
        nvidia_driver: its version, or empty.
    """

    python: str = "3.11.7"
    system: str = "Linux"
    cpus: int = 2
    packages: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, int | None] = field(default_factory=dict)
    shared_memory: Disk | None = None
    disks: Mapping[str, Disk] = field(default_factory=dict)
    memory: Disk | None = None
    interfaces: tuple[str, ...] = ()
    host: str = ""
    host_resolves: bool = True
    port_free: Callable[[int], bool] = lambda port: True
    ascend: Ascend = Ascend()
    nvidia_devices: int = 0
    nvidia_driver: str = ""


def gather(folders: Mapping[str, Path]) -> Facts:
    """Read this machine; what cannot be read is left at its default.

    Args:
        folders: what a folder is for -> the folder, or one that shall be made.
    """
    host = socket.gethostname()
    disks = {name: _or(lambda path=path: _disk(_existing(path)), None) for name, path in folders.items()}
    return Facts(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpus=len(os.sched_getaffinity(0)),
        packages={name: found for name in PACKAGES if (found := _version(name))},
        environment=dict(os.environ),
        limits=_limits(),
        shared_memory=_or(lambda: _disk(Path("/dev/shm")), None),
        disks={name: disk for name, disk in disks.items() if disk is not None},
        memory=_or(_memory, None),
        interfaces=_or(lambda: tuple(name for _, name in socket.if_nameindex()), ()),
        host=host,
        host_resolves=_or(lambda: bool(socket.getaddrinfo(host, None)), False),
        port_free=port_free,
        ascend=_ascend(Path("/"), os.environ),
        nvidia_devices=_nodes(Path("/dev"), "nvidia"),
        nvidia_driver=_first_match(Path("/proc/driver/nvidia/version"), r"Module\s+(?:for \S+\s+)?([\d.]+)"),
    )


def port_free(port: int) -> bool:
    """Whether a port of this machine can be bound."""
    with closing(socket.socket()) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("", port))
        except (OSError, OverflowError):
            return False
    return True


def _or(read: Callable[[], Read], otherwise: Read) -> Read:
    try:
        return read()
    except (OSError, ValueError):
        return otherwise


def _version(name: str) -> str:
    try:
        return (installed_version() or "") if name == "megatron-core" else metadata.version(name)
    except Exception:  # noqa: BLE001 - not installed, or its files are damaged: as good as missing
        return ""


def _disk(path: Path) -> Disk:
    usage = shutil.disk_usage(path)
    return Disk(usage.total, usage.free)


def _existing(path: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    path = path.absolute()
    return next((one for one in (path, *path.parents) if one.exists()), path)


def _limits() -> dict[str, int | None]:
    names = {"open files": "NOFILE", "processes": "NPROC", "locked memory": "MEMLOCK", "address space": "AS"}
    names["file size"] = "FSIZE"
    found = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{word}"))[0] for name, word in names.items()}
    return {name: None if soft == resource.RLIM_INFINITY else soft for name, soft in found.items()}


def _memory() -> Disk:
    """Total and available of the host, or of its control group where that has less."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8")
    kilobytes = {name: int(number) for name, number in re.findall(r"^(\w+):\s+(\d+) kB", lines, re.MULTILINE)}
    total, free = kilobytes["MemTotal"] * 1024, kilobytes["MemAvailable"] * 1024
    limit = _or(lambda: int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")), total)
    used = _or(lambda: int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf-8")), 0)
    return Disk(total, free) if limit >= total else Disk(limit, min(free, limit - used))


def _nodes(folder: Path, name: str) -> int:
    return len([one for one in _or(lambda: os.listdir(folder), []) if re.fullmatch(rf"{name}\d+", one)])


def _first_match(path: Path, pattern: str) -> str:
    found = re.search(pattern, _or(lambda: path.read_text(encoding="utf-8", errors="replace"), ""))
    return found[1] if found else ""


def _ascend(root: Path, environment: Mapping[str, str]) -> Ascend:
    base = root / "usr/local/Ascend"
    named = [environment[name] for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME") if environment.get(name)]
    version, folder = _cann([*map(Path, named), base / "ascend-toolkit/latest", base / "cann", base / "latest"])
    return Ascend(
        devices=_nodes(root / "dev", "davinci"),
        driver=_first_match(base / "driver/version.info", r"(?im)^version=(\S+)"),
        firmware=_first_match(base / "firmware/version.info", r"(?im)^version=(\S+)"),
        cann=version,
        cann_folder=folder,
        sourced=bool(named),
    )


def _cann(folders: Iterable[Path]) -> tuple[str, str]:
    """Version and folder of the first toolkit that says which it is."""
    for folder in folders:
        files = [*sorted(folder.glob("*/ascend_toolkit_install.info")), folder / "version.cfg"]
        files += [*sorted(folder.glob("*/version.info")), folder / "version.info"]
        for file in files:
            version = _first_match(file, r"(?im)^(?:version|\w*running_version)=\[?(?:[\d.]+:)?([\w.]+)")
            if version:
                return version, str(folder)
    return "", ""
