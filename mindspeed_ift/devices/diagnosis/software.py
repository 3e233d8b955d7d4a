"""Driver, firmware and toolkit of the accelerators, and whether torch can use those that are there."""

from __future__ import annotations

from mindspeed_ift.devices.diagnosis.facts import Facts
from mindspeed_ift.devices.diagnosis.finding import Finding

_PLACES = "/usr/local/Ascend/ascend-toolkit/set_env.sh or /usr/local/Ascend/cann/set_env.sh"


def check_ascend(facts: Facts) -> list[Finding]:
    """CANN, driver and firmware; nothing to say where neither torch_npu nor a device is there."""
    ascend = facts.ascend
    if not ascend.devices and "torch-npu" not in facts.packages and not ascend.cann:
        return []
    return [*_toolkit(facts), *_driver(facts)]


def _toolkit(facts: Facts) -> list[Finding]:
    ascend = facts.ascend
    if not ascend.cann:
        return [Finding("CANN", "red", "not found", f"install CANN, then source {_PLACES}")]
    told = f"{ascend.cann} in {ascend.cann_folder}"
    if not ascend.sourced:
        return [Finding("CANN", "red", f"{told}, but its set_env.sh was not sourced", f"source {_PLACES}")]
    return [
        Finding("CANN", "yellow", f"{told}; no CANN was run yet", "see that the maker's table names it with torch_npu")
    ]


def _driver(facts: Facts) -> list[Finding]:
    ascend = facts.ascend
    findings = []
    for name, version in (("driver", ascend.driver), ("firmware", ascend.firmware)):
        remedy = f"install the {name} that the release notes of this CANN name; in a container mount /usr/local/Ascend"
        told = f"{version or 'not found'}; {ascend.devices} devices /dev/davinci*"
        if version and ascend.devices:
            findings.append(Finding(f"Ascend {name}", "green", told))
        else:
            # A container often has the driver's libraries, but not the firmware's file.
            level = "red" if name == "driver" or not ascend.devices else "yellow"
            findings.append(Finding(f"Ascend {name}", level, told, remedy))
    return findings


def check_nvidia(facts: Facts) -> list[Finding]:
    """NVIDIA's driver; nothing to say where there is none of its devices."""
    if not facts.nvidia_devices:
        return []
    if not facts.nvidia_driver:
        return [
            Finding("NVIDIA driver", "red", "devices, but no driver", "install NVIDIA's driver; nvidia-smi must run")
        ]
    return [Finding("NVIDIA driver", "green", f"{facts.nvidia_driver}; {facts.nvidia_devices} devices /dev/nvidia*")]


def check_choice(facts: Facts, kind: str) -> list[Finding]:
    """The device that serves is the best one that is there.

    Args:
        facts: of the machine.
        kind: of the device that torch found.
    """
    there = "npu" if facts.ascend.devices else "cuda" if facts.nvidia_devices else "cpu"
    if kind != "cpu" or there == "cpu":
        return []
    if wanted := facts.environment.get("MINDSPEED_IFT_DEVICE"):
        remedy = "unset MINDSPEED_IFT_DEVICE"
        return [Finding("device chosen", "yellow", f"{wanted}, though there is a faster device", remedy)]
    remedies = {
        "npu": f"install the torch-npu of this torch, source {_PLACES}, and look at npu-smi info",
        "cuda": f"torch {facts.packages.get('torch')} finds none: install a build with CUDA that this driver can serve",
    }
    return [Finding("device chosen", "red", "the CPU, though there are accelerators", remedies[there])]
