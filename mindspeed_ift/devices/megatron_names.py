"""What Megatron-core calls by the name of CUDA, and means the device of this process; `mcore` passes it on.

Megatron is imported at the call: its first import must come after `device.prepare`.
"""

from __future__ import annotations

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
