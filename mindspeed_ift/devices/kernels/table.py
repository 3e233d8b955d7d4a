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
    "swiglu": ("swiglu",),
    "rotary": ("rotary",),
    "grouped_matmul": ("grouped_matmul",),
    "permute": ("permute", "unpermute"),
    "linear": ("linear", "add_product"),
    "cross_entropy": ("softmax_sums", "softmax_gradient"),
    "adamw": ("fused_adamw",),
}
"""Name in `SWITCH` -> the functions that it stands for."""

Kernel = Callable[..., Any]


@dataclass(frozen=True)
class Kernels:
    """One function a field, with the signature and the result of its twin in `kernels.reference`.

    `fused_adamw` says whether torch's AdamW may update all weights of a group in one kernel (``fused=True``).
    """

    attention: Kernel = reference.attention
    attention_forward: Kernel = reference.attention_forward
    attention_backward: Kernel = reference.attention_backward
    rms_norm: Kernel = reference.rms_norm
    swiglu: Kernel = reference.swiglu
    rotary: Kernel = reference.rotary
    grouped_matmul: Kernel = reference.grouped_matmul
    permute: Kernel = reference.permute
    unpermute: Kernel = reference.unpermute
    linear: Kernel = reference.linear
    add_product: Kernel = reference.add_product
    softmax_sums: Kernel = reference.softmax_sums
    softmax_gradient: Kernel = reference.softmax_gradient
    fused_adamw: bool = False


PLAIN = Kernels()


@dataclass(frozen=True)
class Offer:
    """What a device has for one of the `GROUPS`.

    Attributes:
        label: what the log calls it.
        functions: values of the table's fields.
        missing: why it cannot serve, or empty.
    """

    label: str
    functions: Mapping[str, Kernel | bool]
    missing: str = ""


def with_fused(offers: Mapping[str, Offer]) -> tuple[Kernels, str]:
    """The table in which the offers serve that no switch rules out, and a line for the log.

    Raises:
        UserError: `SWITCH` names a group that there is not.
    """
    unwanted = _unwanted()
    functions: dict[str, Any] = {}
    labels, plain_ones = [], []
    for group in GROUPS:
        offer = offers.get(group)
        if offer is None:
            plain_ones.append(group)
        elif group in unwanted or offer.missing:
            plain_ones.append(f"{group} ({SWITCH if group in unwanted else offer.missing})")
        else:
            functions.update(offer.functions)
            labels.append(offer.label)
    if plain_ones:
        labels.append(f"plain torch for {', '.join(plain_ones)}")
    return replace(PLAIN, **functions), "; ".join(labels)


def _unwanted() -> set[str]:
    names = {name.strip() for name in os.environ.get(SWITCH, "").split(",")} - {""}
    wrong = sorted(names - set(GROUPS) - {"all"})
    if wrong:
        raise UserError(f"{SWITCH}: there are no kernels '{wrong[0]}'; there are: all, {', '.join(GROUPS)}")
    return set(GROUPS) if "all" in names else names
