"""pytest plugin of the process in which torch_npu can be imported; see ``tests/device/test_npu_kernels.py``."""

from __future__ import annotations

from tests.device import operators

operators.install()
