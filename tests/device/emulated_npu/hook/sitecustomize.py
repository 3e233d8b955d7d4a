"""With this folder on PYTHONPATH, a process that imports torch_npu has the emulated NPU, and knows nothing of it."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None) -> Any:
        if name != "torch_npu":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_emulate(module: types.ModuleType) -> None:
                execute(module)
                from tests.device import emulated_npu

                emulated_npu.install()

            spec.loader.exec_module = execute_and_emulate  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())
