"""Probes of kernels: the plain ones pass, one that is wrong in its result or its gradient does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mindspeed_ift.devices.kernels import reference
from mindspeed_ift.devices.kernels.probes import PROBED, TOLERANCES, deviations
from mindspeed_ift.devices.kernels.table import GROUPS, PLAIN, Kernels

CPU = torch.device("cpu")


def test_every_group_of_kernels_is_probed() -> None:
    assert set(PROBED) >= set(GROUPS)


@pytest.mark.parametrize("group", PROBED)
def test_plain_kernels_pass(group: str) -> None:
    assert max(deviations(PLAIN, group, CPU, torch.float32)) == 0
    for dtype in PROBED[group]:
        found = deviations(PLAIN, group, CPU, dtype)
        assert found and max(found) <= TOLERANCES[dtype]
        assert dtype == torch.float32 or max(found) > 0, "bf16 rounds: the twin must not"


def sees_the_future(query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor | None) -> Tensor:
    return reference.attention(query, key, value, None)


def scaled_backward(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    out = reference.rms_norm(hidden, weight, epsilon)
    return out.detach() + (out - out.detach()) * 1.1


def not_a_number(gate_and_up: Tensor) -> Tensor:
    return reference.swiglu(gate_and_up) * float("nan")


@pytest.mark.parametrize(
    ("group", "kernels"),
    [
        ("attention", replace(PLAIN, attention=sees_the_future)),
        ("rms_norm", replace(PLAIN, rms_norm=scaled_backward)),
        ("swiglu", replace(PLAIN, swiglu=not_a_number)),
    ],
)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_wrong_kernel_does_not(group: str, kernels: Kernels, dtype: torch.dtype) -> None:
    assert not max(deviations(kernels, group, CPU, dtype)) <= TOLERANCES[dtype]
