"""The name of an accelerator in, its dense bf16 peak out: what a share of it (MFU) is a share of."""

from __future__ import annotations

_PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "Ascend910B1": 414e12,
    "Ascend910B2": 376e12,
    "Ascend910B3": 313e12,
    "Ascend910B4": 280e12,
}
"""Part of a name -> operations a second without sparsity, as the makers' data sheets say; the first that fits counts."""


def peak_operations(name: str) -> float | None:
    """Dense bf16 operations a second of the device of that name; None: not known."""
    return next((peak for part, peak in _PEAKS.items() if part.lower() in name.lower()), None)
