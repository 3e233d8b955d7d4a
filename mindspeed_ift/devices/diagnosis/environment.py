"""Environment variables that matter to a device, with the value we recommend and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mindspeed_ift.devices.diagnosis.facts import Facts
from mindspeed_ift.devices.diagnosis.finding import Finding

_ALL = ("npu", "cuda", "cpu")


@dataclass(frozen=True)
class Variable:
    """One variable.

    Attributes:
        name: of it.
        recommended: its value; empty: better not set.
        why: in a phrase.
        kinds: of the devices to which it matters.
        set_by: who sets it where the user does not, with the verb; empty: nobody.
    """

    name: str
    recommended: str
    why: str
    kinds: tuple[str, ...] = _ALL
    set_by: str = ""


_SCRIPTS = "the scripts of examples/ set"
_LOOK_AGAIN = "for looking for an error only: each operator is waited for"

VARIABLES = (
    Variable("MINDSPEED_IFT_PLAIN_KERNELS", "", "plain torch serves in the place of kernels"),
    Variable("TOKENIZERS_PARALLELISM", "false", "threads of tokenizers do not survive a fork", _ALL, _SCRIPTS),
    Variable("MALLOC_MMAP_MAX_", "0", "freed buffers are kept instead of faulted in again", ("cpu",), _SCRIPTS),
    Variable("MALLOC_TRIM_THRESHOLD_", "4294967296", "as MALLOC_MMAP_MAX_", ("cpu",), _SCRIPTS),
    Variable("CUDA_DEVICE_MAX_CONNECTIONS", "1", "collectives start in their order", ("cuda", "npu"), _SCRIPTS),
    Variable(
        "PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", "rows of many lengths leave memory whole", ("cuda",)
    ),
    Variable("CUDA_LAUNCH_BLOCKING", "", _LOOK_AGAIN, ("cuda",)),
    Variable("ASCEND_LAUNCH_BLOCKING", "", _LOOK_AGAIN, ("npu",)),
    Variable("ASCEND_GLOBAL_LOG_LEVEL", "3", "CANN writes errors only", ("npu",), "CANN takes"),
)
"""Besides those that a run itself sets for its device (`npu.ENVIRONMENT`)."""


def check_environment(facts: Facts, kind: str, own: Mapping[str, str]) -> list[Finding]:
    """Each variable of this kind of device: a finding each.

    Args:
        facts: of the machine.
        kind: of device.
        own: variables that a run itself sets unless they are set, as the device's process told them.
    """
    known = [*VARIABLES, *(Variable(*one, "as docs/devices.md says", _ALL, "a run sets") for one in own.items())]
    findings = [_finding(one, facts.environment.get(one.name, "")) for one in known if kind in one.kinds]
    return [*findings, _threads(facts.environment.get("OMP_NUM_THREADS", ""), facts.cpus)]


def _threads(value: str, cpus: int) -> Finding:
    name, remedy = "OMP_NUM_THREADS", "unset OMP_NUM_THREADS: a run shares the cores among its ranks"
    if not value:
        return Finding(name, "green", "not set; a run shares the cores among its ranks")
    if not value.isdecimal() or not 0 < int(value) <= cpus:
        return Finding(name, "yellow", f"{value}, for {cpus} cores", remedy)
    return Finding(name, "green", f"{value}; ranks x threads should not pass {cpus} cores")


def _finding(variable: Variable, value: str) -> Finding:
    name, wanted = variable.name, variable.recommended
    if value == wanted or (not wanted and value == "0"):
        return Finding(name, "green", value or "not set")
    if not value and variable.set_by:
        return Finding(name, "green", f"not set; {variable.set_by} {wanted}")
    remedy = f"export {name}={wanted}" if wanted else f"unset {name}"
    return Finding(name, "yellow", f"{value or 'not set'} ({variable.why})", remedy)
