"""Megatron-core before 0.16 under the names and arguments of 0.16: what is missing there is made up for here, in one place.

`mcore` passes these names on; on a newer version each is Megatron's own. What is asked is what the installed version takes,
never its number. What cannot be made up for is named by `unable`, to be refused before anything is begun.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import megatron.core.process_groups_config
import torch.distributed as dist
from megatron.core import fp8_utils, optimizer, parallel_state
from megatron.core import tensor_parallel as _tensor_parallel
from megatron.core.models import gpt
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.pipeline_parallel import p2p_communication
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig as _TransformerConfig
from megatron.core.transformer import mlp, utils
from megatron.core.transformer.moe import moe_layer, moe_utils, token_dispatcher
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from torch import Tensor

_GPTModel, _Dispatcher = gpt.GPTModel, token_dispatcher.MoEAlltoAllTokenDispatcher


def _takes(function: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(function).parameters


_GIVES_GROUPS = _takes(_GPTModel.__init__, "pg_collection")
"""From 0.15 on process groups are arguments of what Megatron builds; before, each part takes them from `parallel_state`."""
_COUNTS_PADS = _takes(_GPTModel.forward, "padding_mask")
_KNOWS_CHUNKS = _takes(_GPTModel.__init__, "vp_stage")
_CONFIG = {field.name for field in dataclasses.fields(_TransformerConfig)}
TAKES_COMMUNICATOR = _GIVES_GROUPS
"""A schedule takes `P2PCommunicator` and process groups; before, it asks the stage before for each shape if they differ."""


def unable(*, balance: bool = False, stage_sizes: Sequence[int] = (), tied_and_sharded: bool = False) -> str | None:
    """What of a model the installed version cannot do, as a line that says what to do instead; None: nothing.

    Args:
        balance: its experts are asked to be equally busy.
        stage_sizes: layers of each stage of the pipeline.
        tied_and_sharded: the first and the last of several stages share a weight, and the optimizer is distributed.
    """
    if balance and not _COUNTS_PADS:
        return (
            "--moe-aux-loss-coeff needs megatron-core 0.16 or newer, which leaves pads out of its count; leave it out"
        )
    if len(set(stage_sizes)) > 1 and "pipeline_model_parallel_layout" not in _CONFIG:
        return (
            f"pipeline stages of {', '.join(map(str, stage_sizes))} layers need megatron-core 0.13 or newer: "
            "choose --pipeline-model-parallel-size so that all hold as many"
        )
    if tied_and_sharded and not _KNOWS_CHUNKS:
        # 0.12 may find a shared weight in two buckets of gradients, and fail.
        return (
            "--use-distributed-optimizer with pipeline stages that share the embedding needs megatron-core 0.13 or newer: "
            "leave it out, or choose --pipeline-model-parallel-size 1"
        )
    return None


@dataclasses.dataclass(frozen=True)
class _Groups:
    """This rank's process groups, as many of ProcessGroupCollection's as are asked for."""

    tp: dist.ProcessGroup
    pp: dist.ProcessGroup
    mp: dist.ProcessGroup
    cp: dist.ProcessGroup
    hcp: list[dist.ProcessGroup] | None
    dp_cp: dist.ProcessGroup
    ep: dist.ProcessGroup
    expt_tp: dist.ProcessGroup
    expt_dp: dist.ProcessGroup

    @classmethod
    def use_mpu_process_groups(cls) -> _Groups:
        """Those of `parallel_state`."""
        return cls(
            tp=parallel_state.get_tensor_model_parallel_group(),
            pp=parallel_state.get_pipeline_model_parallel_group(),
            mp=parallel_state.get_model_parallel_group(),
            cp=parallel_state.get_context_parallel_group(),
            hcp=parallel_state.get_hierarchical_context_parallel_groups(check_initialized=False),
            dp_cp=parallel_state.get_data_parallel_group(with_context_parallel=True),
            ep=parallel_state.get_expert_model_parallel_group(),
            expt_tp=parallel_state.get_expert_tensor_parallel_group(),
            expt_dp=parallel_state.get_expert_data_parallel_group(),
        )


class _OlderGPTModel(_GPTModel):
    """Without arguments for process groups and pads, which no part of it asks for; in 0.12 without a hook for the head."""

    def __init__(self, *arguments: Any, pg_collection: Any, vp_stage: int | None = None, **options: Any) -> None:
        if _GIVES_GROUPS:
            options["pg_collection"] = pg_collection
        if _KNOWS_CHUNKS:
            options["vp_stage"] = vp_stage
        _count_layers(vp_stage)
        super().__init__(*arguments, **options)
        self.pg_collection, self.vp_stage = pg_collection, vp_stage

    def forward(self, *arguments: Any, padding_mask: Tensor | None = None, **options: Any) -> Tensor:
        """As Megatron's; experts that count pads are refused before."""
        if hasattr(_GPTModel, "_postprocess"):
            return super().forward(*arguments, **options)
        head, self.post_process = self.post_process, False
        try:
            hidden = super().forward(*arguments)
        finally:
            self.post_process = head
        return self._postprocess(hidden, **options)

    def sharded_state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """As Megatron's."""
        _count_layers(self.vp_stage)
        return super().sharded_state_dict(*arguments, **options)


def _count_layers(chunk: int | None) -> None:
    """For the chunk of this number: before 0.13 it is global state; None: the rank has one."""
    if chunk is not None and not _KNOWS_CHUNKS:
        parallel_state.set_virtual_pipeline_model_parallel_rank(chunk)


class _OlderDispatcher(_Dispatcher):
    """With those of `parallel_state` in the place of the process groups it is given."""

    def __init__(self, *arguments: Any, pg_collection: Any, **options: Any) -> None:
        del pg_collection
        if _takes(_Dispatcher.__init__, "model_comm_pgs"):
            options["model_comm_pgs"] = moe_utils.get_default_model_comm_pgs()
        super().__init__(*arguments, **options)


class _OlderMoESubmodules(moe_layer.MoESubmodules):
    """Without a part for the router, whose own loss is refused."""

    def __init__(self, *, experts: Any, router: Any) -> None:
        del router
        super().__init__(experts=experts)


class _ActivatedMLP(mlp.MLP):
    """With the activation of its spec, which takes gate and up together; before 0.15 there is but a function of the gate."""

    def __init__(self, config: _TransformerConfig, submodules: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(config, submodules, *arguments, **options)
        self.activation_func = build_module(submodules.activation_func, config=config)

    def forward(self, hidden_states: Tensor, *_: Any) -> tuple[Tensor, Tensor | None]:
        """``[S, B, H]`` to ``[S, B, H]`` and no bias."""
        return self.linear_fc2(self.activation_func(self.linear_fc1(hidden_states)[0]))


def _activated(make: Callable[..., ModuleSpec]) -> Callable[..., ModuleSpec]:
    def layer_spec(**options: Any) -> ModuleSpec:
        spec = make(**options)
        spec.submodules.mlp.module = _ActivatedMLP
        return spec

    return layer_spec


def _without(function: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """The function, with keyword arguments of these names, which it does not know, left out."""

    def call(*arguments: Any, **options: Any) -> Any:
        return function(*arguments, **{name: value for name, value in options.items() if name not in names})

    return call


def _with_fields(config: type, *names: str) -> type:
    """The dataclass, which may be told these too where it has no such field: nothing of its version asks for them."""
    known = {field.name for field in dataclasses.fields(config)}
    added = [(name, Any, dataclasses.field(default=None)) for name in names if name not in known]
    return dataclasses.make_dataclass(config.__name__, added, bases=(config,)) if added else config


def part(module: type, **options: Any) -> Any:
    """One of our modules as a part of a spec, built with ``options``, and with the process groups as ``pg_collection``."""
    if not _GIVES_GROUPS:
        options["pg_collection"] = _Groups.use_mpu_process_groups()
    return ModuleSpec(module=module, params=options)


P2PCommunicator: Any = getattr(p2p_communication, "P2PCommunicator", object)
ProcessGroupCollection = getattr(megatron.core.process_groups_config, "ProcessGroupCollection", _Groups)
GPTModel = _GPTModel if _COUNTS_PADS else _OlderGPTModel
MoEAlltoAllTokenDispatcher = _Dispatcher if _GIVES_GROUPS else _OlderDispatcher
MoESubmodules = moe_layer.MoESubmodules if _COUNTS_PADS else _OlderMoESubmodules
get_gpt_layer_local_spec = gpt_layer_specs.get_gpt_layer_local_spec
if "use_te_activation_func" not in _CONFIG:
    get_gpt_layer_local_spec = _activated(get_gpt_layer_local_spec)
make_sharded_tensors_for_checkpoint = utils.make_sharded_tensors_for_checkpoint
if not _takes(make_sharded_tensors_for_checkpoint, "tp_group"):
    make_sharded_tensors_for_checkpoint = _without(make_sharded_tensors_for_checkpoint, "tp_group", "dp_cp_group")
TransformerConfig = _with_fields(
    _TransformerConfig, "use_te_activation_func", "embedding_init_method", "pipeline_model_parallel_layout"
)
OptimizerConfig = _with_fields(optimizer.OptimizerConfig, "overlap_param_gather")
tensor_parallel: Any = _tensor_parallel
if not _takes(_tensor_parallel.copy_to_tensor_model_parallel_region, "group"):
    regions = ("copy_to", "gather_from", "reduce_from")
    names = [f"{name}_tensor_model_parallel_region" for name in regions]
    replaced = {name: _without(getattr(_tensor_parallel, name), "group") for name in names}
    tensor_parallel = SimpleNamespace(**vars(_tensor_parallel) | replaced)
    for linear in (ColumnParallelLinear, RowParallelLinear):
        linear.tp_group = property(lambda self: parallel_state.get_tensor_model_parallel_group())
if not _takes(fp8_utils._quantize_param_shard_impl, "model_params"):
    # No weight is in fp8 without TransformerEngine, and without it 0.12 fails on none of them too.
    fp8_utils._quantize_param_shard_impl = lambda *_: None
