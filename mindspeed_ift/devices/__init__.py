"""What it runs on: the only package that says npu, cuda or torch_npu.

Read `device.py` (which device, and what it answers), then `kernels/reference.py` (the mathematics every device must
equal), `kernels/table.py` (which function serves), `kernels/npu.py`, then `without_cuda.py` and `npu.py` (what
Megatron-core must be told where there is no CUDA).
"""
