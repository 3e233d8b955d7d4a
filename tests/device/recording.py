"""Which operators were called, how, since the process started."""

from __future__ import annotations

from torch import Tensor

CALLS: set[tuple[str, str, str]] = set()
"""(operator, layout, dtypes)."""


def record(name: str, layout: str, *tensors: Tensor | None) -> None:
    """Remember a call."""
    dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor is not None]
    CALLS.add((name, layout, ", ".join(dict.fromkeys(dtypes))))
