"""The kernels of a process in one table: for each function the device's, or its plain twin where a switch asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.devices.kernels import reference

SWITCH = "MINDSPEED_IFT_PLAIN_KERNELS"
"""Environment variable: groups of kernels (comma between) for which plain torch serves; ``all`` means each."""

GROUPS: dict[str, tuple[str, ...]] = {
    "attention": ("attention", "attention_forward", "attention_backward"),
    "rms_norm": ("rms_norm",),
    "grouped_matmul": ("grouped_matmul",),
}
"""Name in `SWITCH` -> the functions that it stands for."""

Kernel = Callable[..., Any]


@dataclass(frozen=True)
class Kernels:
    """One function a field, with the signature and the result of its twin in `kernels.reference`."""

    attention: Kernel = reference.attention
    attention_forward: Kernel = reference.attention_forward
    attention_backward: Kernel = reference.attention_backward
    rms_norm: Kernel = reference.rms_norm
    grouped_matmul: Kernel = reference.grouped_matmul


PLAIN = Kernels()


def plain() -> tuple[Kernels, str]:
    """Plain torch for everything, and how the log says it."""
    return PLAIN, "plain torch"


def with_fused(fused: Mapping[str, tuple[str, Mapping[str, Kernel]]]) -> tuple[Kernels, str]:
    """The table in which ``fused`` kernels serve where no switch asks for plain ones, and a line for the log.

    Args:
        fused: group -> what the log calls its kernels, and the functions by their field's name.

    Raises:
        UserError: `SWITCH` names a group that there is not.
    """
    unwanted = _unwanted()
    chosen = {group: offer for group, offer in fused.items() if group not in unwanted}
    functions = {name: kernel for _, kernels in chosen.values() for name, kernel in kernels.items()}
    said = [label for label, _ in chosen.values()]
    switched = [group for group in fused if group in unwanted]
    missing = [group for group in GROUPS if group not in fused]
    if switched:
        said.append(f"plain torch for {', '.join(switched)} ({SWITCH})")
    if missing:
        said.append(f"plain torch for {', '.join(missing)}")
    return replace(PLAIN, **functions), "; ".join(said)


def _unwanted() -> set[str]:
    names = {name.strip() for name in os.environ.get(SWITCH, "").split(",")} - {""}
    wrong = sorted(names - set(GROUPS) - {"all"})
    if wrong:
        raise UserError(f"{SWITCH}: there are no kernels '{wrong[0]}'; there are: all, {', '.join(GROUPS)}")
    return set(GROUPS) if "all" in names else names
