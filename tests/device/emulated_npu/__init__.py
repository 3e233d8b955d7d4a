"""Device "npu" without an Ascend: the real torch_npu on a runtime whose device memory is the host's.

Read `environment.py` (how a process gets it), `runtime.c` (the stand-in of CANN's runtime), `memory.py`, `kernels.py`
(operators of torch and of torch_npu), `formulas.py`, `collectives.py` (the process group "hccl").
"""

from __future__ import annotations


def install() -> None:
    """Put kernels and collectives in the place of those that need hardware. Call after torch_npu's import."""
    from tests.device import attention_operators, small_operators
    from tests.device.emulated_npu import collectives, formulas, kernels

    kernels.install(attention_operators.OPERATORS | small_operators.OPERATORS | formulas.FORMULAS)
    collectives.install()
