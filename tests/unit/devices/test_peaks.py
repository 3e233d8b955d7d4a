"""Peaks by name."""

from __future__ import annotations

import pytest

from mindspeed_ift.devices.device import current
from mindspeed_ift.devices.peaks import peak_operations


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Ascend910B3", 313e12),
        ("NVIDIA GeForce RTX 3060", None),
    ],
)
def test_the_peak_of_a_name(name: str, peak: float | None) -> None:
    assert peak_operations(name) == peak


def test_a_host_promises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINDSPEED_IFT_DEVICE", "cpu")
    assert current().peak_operations() is None
