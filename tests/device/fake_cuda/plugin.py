"""For pytest's ``-p``: the device is there before torch is imported, and the package finds it."""

from __future__ import annotations

import ctypes
import os

ctypes.CDLL(os.environ["FAKE_CUDA_RUNTIME"])

from tests.device.fake_cuda import module  # noqa: E402 - torch asks once what there is
from tests.device.fake_cuda.compiled import compiler  # noqa: E402
from tests.device.fake_cuda.memory import FakeCuda  # noqa: E402

DEVICE = FakeCuda()
module.install(DEVICE)

from mindspeed_ift.devices.device import current  # noqa: E402
from mindspeed_ift.devices.kernels import cuda  # noqa: E402

cuda._compiled = compiler(DEVICE)
with DEVICE:  # where products are tried
    current()
