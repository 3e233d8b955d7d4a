"""What is read of this machine, and of an Ascend machine made of files."""

from __future__ import annotations

import platform
from pathlib import Path

from mindspeed_ift.devices.diagnosis.facts import Ascend, _ascend, gather


def test_this_machine(tmp_path: Path) -> None:
    facts = gather({"there": tmp_path, "not yet": tmp_path / "a" / "b"})
    assert facts.python == platform.python_version() and facts.packages["torch"]
    assert set(facts.disks) == {"there", "not yet"} and 0 < facts.disks["not yet"].free <= facts.disks["not yet"].total
    assert facts.memory is not None and 0 < facts.memory.free <= facts.memory.total
    assert "lo" in facts.interfaces and "open files" in facts.limits and facts.cpus > 0


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_an_ascend_machine(tmp_path: Path) -> None:
    base = tmp_path / "usr/local/Ascend"
    write(base / "driver/version.info", "Version=24.1.rc2\nascendhal_version=7.35\n")
    write(base / "firmware/version.info", "Version=7.5.0.1\n")
    toolkit = base / "ascend-toolkit/latest"
    write(toolkit / "aarch64-linux/ascend_toolkit_install.info", "package_name=Ascend-cann\nversion=8.0.RC3\n")
    for number in range(2):
        write(tmp_path / f"dev/davinci{number}", "")
    write(tmp_path / "dev/davinci_manager", "")
    expected = Ascend(2, "24.1.rc2", "7.5.0.1", "8.0.RC3", str(toolkit), sourced=False)
    assert _ascend(tmp_path, {}) == expected
    other = tmp_path / "opt"
    write(other / "version.cfg", "# version: 1.0\nruntime_running_version=[7.6.0.1.220:9.0.0]\n")
    found = _ascend(tmp_path, {"ASCEND_HOME_PATH": str(other)})
    assert (found.cann, found.cann_folder, found.sourced) == ("9.0.0", str(other), True)


def test_a_machine_without_ascend(tmp_path: Path) -> None:
    assert _ascend(tmp_path, {}) == Ascend()
