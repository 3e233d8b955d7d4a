"""What we use of Megatron-core, under one roof: the device is prepared, then these names are imported.

Everything else in this package takes Megatron's names from here, so that what we depend on can be read in one place
and no module imports Megatron before it is prepared for the current device.
"""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from typing import Any

from mindspeed_ift.config.errors import RunError
from mindspeed_ift.devices import device as _device
from mindspeed_ift.devices.megatron_names import (
    NO_GRAPHS,
    add_weight_gradients_by,
    installed_version,
    random_streams,
    seed_random_streams,
)

SUPPORTED_VERSIONS = ("0.12.", "0.15.", "0.16.", "0.17.", "0.18.", "0.19.")
"""Prefixes of the megatron-core versions that the tests run on."""

_version = installed_version()
if _version is None:
    raise RunError("megatron-core is not installed: pip install megatron-core==0.16.1")
if not _version.startswith(SUPPORTED_VERSIONS):
    raise RunError(
        f"megatron-core {_version} is installed, which was not run; 0.12.1 and 0.15.3 to 0.19.2 were: "
        "pip install megatron-core==0.16.1"
    )

_device.prepare(_device.current())

# Without apex and TransformerEngine each of these modules warns that it falls back; ours replace the fallbacks.
logging.getLogger("megatron.core").setLevel(logging.ERROR)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from megatron.core import parallel_state
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.optimizer import get_megatron_optimizer
    from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
    from megatron.core.optimizer.grad_scaler import DynamicGradScaler
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.pipeline_parallel.schedules import get_schedule_table
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.attention import SelfAttention
    from megatron.core.transformer.mlp import MLP, apply_swiglu_sharded_factory
    from megatron.core.transformer.moe import moe_utils
    from megatron.core.transformer.moe.moe_layer import MoELayer
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
    from megatron.core.transformer.moe.router import TopKRouter
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

    from mindspeed_ift.mcore_versions import (
        TAKES_COMMUNICATOR,
        GPTModel,
        MoEAlltoAllTokenDispatcher,
        MoESubmodules,
        OptimizerConfig,
        P2PCommunicator,
        ProcessGroupCollection,
        TransformerConfig,
        get_gpt_layer_local_spec,
        make_sharded_tensors_for_checkpoint,
        part,
        tensor_parallel,
        unable,
    )

if not hasattr(moe_utils, "te_general_gemm"):
    moe_utils.te_general_gemm = (
        None  # the router asks for it by this name, also where TransformerEngine is not installed
    )


def submodules(spec: Any) -> Any:
    """The parts of a layer's part, to be replaced in place: of a ModuleSpec, or, from 0.17 on, of a partial."""
    return spec.keywords["submodules"] if isinstance(spec, functools.partial) else spec.submodules


if not sys.warnoptions:  # python -W shows them: what the libraries have to say to each other is nothing a user can mend
    warnings.filterwarnings("ignore", module=r"megatron\.core\.")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")

__all__ = [
    "ColumnParallelLinear",
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "DynamicGradScaler",
    "GPTModel",
    "MLP",
    "MoEAlltoAllTokenDispatcher",
    "MoEAuxLossAutoScaler",
    "MoELayer",
    "MoESubmodules",
    "HybridDeviceOptimizer",
    "ModuleSpec",
    "NO_GRAPHS",
    "OptimizerConfig",
    "OptimizerParamScheduler",
    "P2PCommunicator",
    "ProcessGroupCollection",
    "RowParallelLinear",
    "ShardedTensor",
    "ShardedTensorFactory",
    "TAKES_COMMUNICATOR",
    "SelfAttention",
    "TopKRouter",
    "TransformerBlockSubmodules",
    "TransformerConfig",
    "add_weight_gradients_by",
    "apply_swiglu_sharded_factory",
    "finalize_model_grads",
    "get_forward_backward_func",
    "get_gpt_layer_local_spec",
    "get_megatron_optimizer",
    "get_schedule_table",
    "make_sharded_tensors_for_checkpoint",
    "parallel_state",
    "part",
    "random_streams",
    "seed_random_streams",
    "submodules",
    "tensor_parallel",
    "unable",
]
