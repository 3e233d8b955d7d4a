"""Instruction fine-tuning of Qwen3 on Ascend NPU, CUDA and CPU through one code path.

Packages, from what is asked to what is run: `config`, `devices`, `mcore`, `data` and `parallel`, `model` and
`checkpoint`, `training` and `inference`, `cli`. Each may import only those before it.
"""

from __future__ import annotations

__version__ = "0.1.0"
