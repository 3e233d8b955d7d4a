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
    assert set(offers) == set(table.GROUPS) - {"linear", "cross_entropy"}
    assert {group for group, offer in offers.items() if offer.missing} == set(missing)
    kernels, notice = device.kernels()
    assert kernels.attention is npu.attention and kernels.fused_adamw
    reasons = [f"{group} ({offer.missing})" for group, offer in offers.items() if offer.missing]
    assert notice.endswith(f"; plain torch for {', '.join([*reasons, 'linear'])}") and notice.count("plain") == 1
    monkeypatch.setenv(table.SWITCH, "attention,adamw")
    kernels, notice = device.kernels()
    assert kernels.attention is table.PLAIN.attention and not kernels.fused_adamw
    off = f"({table.SWITCH})"
    assert notice.endswith(f"plain torch for {', '.join([f'attention {off}', *reasons, 'linear', f'adamw {off}'])}")


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
    assert f"plain torch for swiglu ({reason})" in device.kernels()[1]
