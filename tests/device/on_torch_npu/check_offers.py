"""What this torch_npu offers: everything; and what an older one would be said to lack."""

from __future__ import annotations

import pytest

from mindspeed_ift.devices import npu as device
from mindspeed_ift.devices.kernels import npu, table


def check_that_every_kernel_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(table.SWITCH, raising=False)
    assert set(npu.offers()) == set(table.GROUPS) - {"linear"}
    kernels, notice = device.kernels()
    assert kernels.attention is npu.attention and kernels.fused_adamw
    assert notice.endswith("; plain torch for linear") and notice.count("plain") == 1
    monkeypatch.setenv(table.SWITCH, "attention,adamw")
    kernels, notice = device.kernels()
    assert kernels.attention is table.PLAIN.attention and not kernels.fused_adamw
    assert notice.endswith(f"plain torch for attention ({table.SWITCH}), linear, adamw ({table.SWITCH})")


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
