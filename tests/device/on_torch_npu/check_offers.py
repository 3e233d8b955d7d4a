"""What this torch_npu offers: all that its schemas have; and how it is said what one lacks."""

from __future__ import annotations

import importlib.metadata

import pytest

from mindspeed_ift.devices import npu as device
from mindspeed_ift.devices.kernels import npu, table
from tests.device import torch_npu_schemas


def check_that_every_kernel_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the release has: what it lacks follows from its schemas, and none of those that are used with it lacks more."""
    missing = torch_npu_schemas.missing(importlib.metadata.version("torch-npu"))
    assert not set(missing) - {"permute"}
    monkeypatch.delenv(table.SWITCH, raising=False)
    offers = npu.offers()
    assert {group for group, offer in offers.items() if offer.missing} == set(missing)
    kernels, notice = device.kernels(0)
    assert kernels.attention is npu.attention and kernels.fused_adamw
    reasons = {group: offers[group].missing if group in offers else "" for group in table.GROUPS}
    plain = {group: reason for group, reason in reasons.items() if reason or group not in offers}
    assert set(plain) - set(missing) == {"linear", "cross_entropy"} and notice.endswith(f"; {_said(plain)}")
    monkeypatch.setenv(table.SWITCH, "attention,adamw")
    kernels, notice = device.kernels(0)
    assert kernels.attention is table.PLAIN.attention and not kernels.fused_adamw
    plain |= dict.fromkeys(("attention", "adamw"), table.SWITCH)
    assert notice.endswith(f"; {_said(plain)}")


def _said(plain: dict[str, str]) -> str:
    reasons = [f"{group} ({plain[group]})" if plain[group] else group for group in table.GROUPS if group in plain]
    return f"plain torch for {', '.join(reasons)}"


@pytest.mark.parametrize(
    ("needed", "reason"),
    [
        ({"npu_swiglu_of_tomorrow": []}, "this torch_npu has no npu_swiglu_of_tomorrow"),
        ({"npu_swiglu": ["dim", "limit"]}, "npu_swiglu of this torch_npu knows no limit"),
    ],
)
def check_that_what_lacks_is_named(monkeypatch: pytest.MonkeyPatch, needed: dict[str, list[str]], reason: str) -> None:
    monkeypatch.setitem(npu.NEEDED, "swiglu", needed)
    assert npu.offers()["swiglu"].missing == reason
    assert f"plain torch for swiglu ({reason})" in device.kernels(0)[1]
