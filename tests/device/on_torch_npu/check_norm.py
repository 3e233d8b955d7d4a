"""RMSNorm through torch_npu equals its plain twin, gradients included."""

from __future__ import annotations

import pytest
import torch

from mindspeed_ift.devices.kernels import npu, reference
from tests.tolerances import KERNEL, KERNEL_BF16


@pytest.mark.parametrize("shape", [(5, 2, 64), (3, 1, 4, 16)])
def check_rms_norm(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(shape, generator=generator).requires_grad_()
    weight = torch.rand(shape[-1:], generator=generator).requires_grad_()
    grad = torch.randn(shape, generator=generator)
    out, expected = (module.rms_norm(hidden, weight, 1e-5) for module in (npu, reference))
    torch.testing.assert_close(out, expected, **KERNEL)
    pairs = (torch.autograd.grad(one, (hidden, weight), grad) for one in (out, expected))
    for found, wanted in zip(*pairs):
        torch.testing.assert_close(found, wanted, **KERNEL)
    wide, narrow = expected, npu.rms_norm(hidden.bfloat16(), weight.bfloat16(), 1e-5)
    assert narrow.dtype == torch.bfloat16 and float((narrow - wide).abs().max()) <= KERNEL_BF16 * float(
        wide.abs().max()
    )
