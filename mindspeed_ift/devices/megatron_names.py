"""What Megatron-core calls by the name of CUDA, and means the device of this process; `mcore` passes it on. And which
Megatron-core an import would find.

Megatron is imported at the call: its first import must come after `device.prepare`. Nor is torch imported here, which the
doctor may find broken.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NO_GRAPHS: dict[str, Any] = {"cuda_graph_scope": []}
"""For a TransformerConfig: nothing is recorded and replayed. Its default means the same, and warns that it is deprecated."""


def random_streams() -> Any:
    """The generators among which tensor parallel ranks draw alike or apart: Megatron's CudaRNGStatesTracker."""
    from megatron.core import tensor_parallel

    return tensor_parallel.get_cuda_rng_tracker()


def seed_random_streams(seed: int) -> None:
    """Make them anew from a seed, of each tensor, pipeline and expert parallel rank its own."""
    from megatron.core import tensor_parallel

    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def add_weight_gradients_by(add_product: Callable[[Any, Any, Any], None]) -> None:
    """Let Megatron's linear layers with ``gradient_accumulation_fusion`` add to their gradients by a kernel of ours.

    They look for apex's extension by its name, which need not be installed then.

    Args:
        add_product: adds the transpose of its second tensor times the third to the first.
    """
    from megatron.core.tensor_parallel import layers

    def add(tokens: Any, grad: Any, total: Any) -> None:
        add_product(total, grad, tokens)

    layers.fused_weight_gradient_mlp_cuda = SimpleNamespace(wgrad_gemm_accum_fp32=add)


def installed_version() -> str | None:
    """Version of the Megatron-core that an import finds, pip's or a clone of Megatron-LM on the path; None: there is none.

    Read from its file, without an import.
    """
    found = importlib.util.find_spec("megatron")
    for folder in (found.submodule_search_locations if found is not None else None) or ():
        file = Path(folder) / "core/package_info.py"
        if file.is_file():
            numbers = re.findall(r"^(?:MAJOR|MINOR|PATCH) = (\d+)", file.read_text(encoding="utf-8"), re.MULTILINE)
            return ".".join(numbers)
    return None
