"""LoRA on Megatron's parallel linear layers: a frozen weight, and a trained one of low rank beside it.

The adapters are parameters of the layer itself (``linear_qkv.lora_A``), so that every other name stays as it is. They
are split as the weight is: a column-parallel layer splits ``lora_B`` along its rows, a row-parallel one ``lora_A`` along
its columns; the other factor is whole on every tensor rank. What travels between tensor ranks is ``rank`` channels wide.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from mindspeed_ift.config.lora import LoraFlags
from mindspeed_ift.mcore import (
    ColumnParallelLinear,
    ModuleSpec,
    MoESubmodules,
    RowParallelLinear,
    ShardedTensor,
    apply_swiglu_sharded_factory,
    make_sharded_tensors_for_checkpoint,
    part,
    random_streams,
    submodules,
    tensor_parallel,
)
from mindspeed_ift.model.experts import GroupedExperts

# Shapes: S positions, B rows, I inputs and O outputs of the layer on this tensor rank, R rank of the adapter.


class LoraColumnLinear(ColumnParallelLinear):
    """``W x + scale * B (A x)`` with the outputs split over the tensor ranks.

    Args:
        lora: rank, scale, dropout, kind.
        gated: the outputs are gate and up, one after the other on each rank.
        arguments, options: of Megatron's ColumnParallelLinear.
    """

    def __init__(self, *arguments: Any, lora: LoraFlags, gated: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lora, self.gated = lora, gated
        self.lora_A = _factor(self.weight, lora.lora_r, self.input_size)
        self.lora_B = _factor(self.weight, self.output_size_per_partition, lora.lora_r, sharded=0)
        # Under sequence parallelism each tensor rank sees its own positions here; Megatron sums these gradients.
        self.lora_A.sequence_parallel = self.sequence_parallel
        if lora.use_dora:
            self.lora_magnitude = _factor(self.weight, self.output_size_per_partition, sharded=0)

    def forward(self, input_: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        """``[S (or S / TP), B, I]`` to ``[S, B, O]``, as Megatron's."""
        output, bias = super().forward(input_, *arguments, **options)
        hidden = functional.linear(_dropped(self, input_, split=self.sequence_parallel), self.lora_A)
        if self.sequence_parallel:
            hidden = tensor_parallel.gather_from_sequence_parallel_region(hidden, group=self.tp_group)
        else:
            hidden = tensor_parallel.copy_to_tensor_model_parallel_region(hidden, group=self.tp_group)
        output = output + functional.linear(hidden, self.lora_B) * self.lora.scale
        return (output * self._lengths() if self.lora.use_dora else output), bias

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """Which part of which whole tensor each parameter is, as Megatron's; of a gated layer gate and up apart."""
        content = _sharded(self, {"weight": 0, "lora_B": 0, "lora_magnitude": 0}, prefix, sharded_offsets, metadata)
        for name in ("lora_B", "lora_magnitude") if self.gated else ():
            if prefix + name in content:
                content[prefix + name] = apply_swiglu_sharded_factory(content[prefix + name], sharded_offsets)
        return content

    def _lengths(self) -> Tensor:
        return self.lora_magnitude / directions(self.weight, self.lora_A, self.lora_B, self.lora.scale, None)


class LoraRowLinear(RowParallelLinear):
    """``W x + scale * B (A x)`` with the inputs split over the tensor ranks.

    Args:
        lora: rank, scale, dropout, kind.
        arguments, options: of Megatron's RowParallelLinear.
    """

    def __init__(self, *arguments: Any, lora: LoraFlags, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lora = lora
        self.lora_A = _factor(self.weight, lora.lora_r, self.input_size_per_partition, sharded=1)
        self.lora_B = _factor(self.weight, self.output_size, lora.lora_r)
        self.lora_B.sequence_parallel = self.sequence_parallel
        if lora.use_dora:
            self.lora_magnitude = _factor(self.weight, self.output_size)
            self.lora_magnitude.sequence_parallel = self.sequence_parallel

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """``[S, B, I]`` to ``[S (or S / TP), B, O]``, as Megatron's."""
        output, bias = super().forward(input_)
        hidden = functional.linear(_dropped(self, input_, split=True), self.lora_A)
        if self.sequence_parallel:
            hidden = tensor_parallel.reduce_scatter_to_sequence_parallel_region(hidden, group=self.tp_group)
        else:
            hidden = tensor_parallel.reduce_from_tensor_model_parallel_region(hidden, group=self.tp_group)
        output = output + functional.linear(hidden, self.lora_B) * self.lora.scale
        return (output * self._lengths() if self.lora.use_dora else output), bias

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """Which part of which whole tensor each parameter is, as Megatron's."""
        return _sharded(self, {"weight": 1, "lora_A": 1}, prefix, sharded_offsets, metadata)

    def _lengths(self) -> Tensor:
        return self.lora_magnitude / directions(self.weight, self.lora_A, self.lora_B, self.lora.scale, self.tp_group)


_SPLIT = {"lora_B1": 3, "lora_A2": 1}
"""Factors of experts that are split over the expert tensor ranks -> dimension, in a checkpoint, along which."""


class LoraGroupedExperts(GroupedExperts):
    """``W x + scale * B (A x)`` in each expert, whose adapters are its own and stay with it.

    ``lora_A1`` ``[E, H, R]`` and ``lora_B1`` ``[E, R, 2F]`` belong to ``weight1``, which PEFT calls gate_proj and up_proj
    of an expert, sharing their A; ``lora_A2`` ``[E, F, R]`` and ``lora_B2`` ``[E, R, H]`` to ``weight2``, its down_proj.
    Under expert tensor parallelism, of all tensor ranks, what has F is split with the weight and the rest is whole; each
    rank then computes a part of the sum, forward and backward, and nothing more travels than without adapters.

    Args:
        lora: rank, scale, dropout, modules.
        arguments, options: of `GroupedExperts`.
    """

    def __init__(self, *arguments: Any, lora: LoraFlags, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lora = lora
        experts, alone = self.num_local_experts, self.tp_group.size() == 1
        for number, _ in self.targets():
            weight = self.matrices(number)
            for factor, shape in (("A", (weight.shape[1], lora.lora_r)), ("B", (lora.lora_r, weight.shape[2]))):
                parameter = nn.Parameter(torch.zeros(experts, *shape, dtype=weight.dtype, device=weight.device))
                name = f"lora_{factor}{number}"
                # Of a whole one Megatron then counts one rank's gradient norm, and sums the ranks' gradients.
                whole = not alone and name not in _SPLIT
                tensor_parallel.set_tensor_model_parallel_attributes(parameter, not whole, 0, 1)
                parameter.sequence_parallel = whole
                parameter.allreduce = False  # as the weight's
                setattr(self, name, parameter)

    def targets(self) -> list[tuple[int, str]]:
        """(number of the weight, name of the module) of those with adapters."""
        return [
            (n, name) for n, name in ((1, "linear_fc1"), (2, "linear_fc2")) if name in self.lora.lora_target_modules
        ]

    def product(self, number: int, tokens: Tensor, counts: list[int]) -> Tensor:
        """As `GroupedExperts.product`, with the adapters."""
        output = super().product(number, tokens, counts)
        if not hasattr(self, f"lora_A{number}"):
            return output
        # Tensor ranks have other tokens each, or other parts of the inner channels, or all alike.
        dropped = _dropped(self, tokens, split=self.tp_group.size() == 1 or number == 2)
        inner = self.multiply(dropped, getattr(self, f"lora_A{number}"), counts)
        return output + self.multiply(inner, getattr(self, f"lora_B{number}"), counts) * self.lora.scale

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """As `GroupedExperts.sharded_state_dict`, with the factors: of all experts one after the other."""
        content = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        by_expert = (0, self.ep_group.rank(), self.ep_group.size())
        size, rank = self.tp_group.size(), self.tp_group.rank()
        for name, parameter in self.named_parameters():
            if not name.startswith("lora_"):
                continue
            # Gate and up are split apart.
            data = parameter.unflatten(2, (2, -1)) if name == "lora_B1" else parameter
            offsets = [by_expert, (_SPLIT[name], rank, size)] if name in _SPLIT else [by_expert]
            replica = (0, 0 if name in _SPLIT else rank, self.dp_group.rank())
            content[prefix + name] = ShardedTensor.from_rank_offsets(prefix + name, data, *offsets, replica_id=replica)
        return content

    @torch.no_grad()
    def start(self, name: str) -> None:
        """Fresh adapters; ``name`` and the number of the expert are what is drawn from."""
        first = self.num_local_experts * self.ep_group.rank()
        for number, module in self.targets():
            factor, split = getattr(self, f"lora_A{number}"), f"lora_A{number}" in _SPLIT
            parts, part = (self.tp_group.size(), self.tp_group.rank()) if split else (1, 0)
            for expert, one in enumerate(factor):
                whole = _drawn(f"{name} {first + expert} {module}", self.lora.lora_r, factor.shape[1] * parts)
                one.copy_(whole.chunk(parts, 1)[part].T)
            getattr(self, f"lora_B{number}").zero_()


def add_adapters(layer: ModuleSpec, lora: LoraFlags) -> None:
    """Replace the targeted linear layers in the spec of a transformer layer."""
    attention, mlp = layer.submodules.self_attention.submodules, submodules(layer.submodules.mlp)
    experts = isinstance(mlp, MoESubmodules)
    for owner, name, kind in (
        (attention, "linear_qkv", LoraColumnLinear),
        (attention, "linear_proj", LoraRowLinear),
        (mlp, "linear_fc1", LoraColumnLinear),
        (mlp, "linear_fc2", LoraRowLinear),
    ):
        if name not in lora.lora_target_modules:
            continue
        if experts and owner is mlp:
            mlp.experts = part(LoraGroupedExperts, lora=lora)
        else:
            gated = {"gated": True} if name == "linear_fc1" else {}
            setattr(owner, name, ModuleSpec(module=kind, params={"lora": lora, **gated}))


def freeze(model: nn.Module, lora: LoraFlags, tied: bool) -> None:
    """Leave a gradient to adapters and modules to save only; ``tied``: the output layer is the embedding."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(lora.is_trained(name, tied))
    embedding = getattr(model, "embedding", None)
    if embedding is not None:
        # Recompute gives no gradient to what follows an input without one.
        embedding.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_())


def start_adapters(model: nn.Module, layer_numbers: range, seed: int) -> None:
    """Fresh adapters that change nothing yet: A random, B zero, lengths those of the frozen rows.

    Every layout starts from the same ones: A is drawn whole, by seed, layer and module, and then cut.

    Args:
        model: with its frozen weights filled in.
        layer_numbers: global numbers of this stage's layers.
        seed: ``--seed``.

    Source: Kaiming's uniform distribution with a = sqrt(5), as PEFT's LoraLayer.
    """
    for name, module in model.named_modules():
        if not isinstance(module, (LoraColumnLinear, LoraRowLinear, LoraGroupedExperts)):
            continue
        parts = name.split(".")
        layer = layer_numbers[int(parts[parts.index("layers") + 1])]
        if isinstance(module, LoraGroupedExperts):
            module.start(f"{seed} {layer}")
            continue
        whole = _drawn(f"{seed} {layer} {parts[-1]}", module.lora.lora_r, module.input_size)
        by_column = isinstance(module, LoraRowLinear)
        part = whole.chunk(module.tp_group.size(), 1)[module.tp_group.rank()] if by_column else whole
        with torch.no_grad():
            module.lora_A.copy_(part)
            module.lora_B.zero_()
            if module.lora.use_dora:
                group = module.tp_group if by_column else None
                module.lora_magnitude.copy_(directions(module.weight, module.lora_A, module.lora_B, 0.0, group))


def _drawn(name: str, rank: int, inputs: int) -> Tensor:
    """A fresh A, fp32 ``[R, I]``, the same for the same name."""
    generator, bound = torch.Generator().manual_seed(zlib.crc32(name.encode())), 1 / math.sqrt(inputs)
    return torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def directions(
    weight_OI: Tensor,
    lora_A_RI: Tensor,
    lora_B_OR: Tensor,
    scale: float,
    group: torch.distributed.ProcessGroup | None,
) -> Tensor:
    """Length of each row of ``W + scale * B A``, ``[O]`` in the dtype of the weight, without a gradient (DoRA, 4.3).

    Args:
        weight_OI: this rank's part of the weight.
        lora_A_RI: its part of A.
        lora_B_OR: its part of B.
        scale: of the adapter.
        group: the ranks among which the inputs are split, or None.
    """
    squares = (weight_OI.float() + scale * lora_B_OR.float() @ lora_A_RI.float()).pow(2).sum(1)
    if group is not None:
        torch.distributed.all_reduce(squares, group=group)
    return squares.sqrt().to(weight_OI.dtype)


def _factor(like: Tensor, *shape: int, sharded: int | None = None) -> nn.Parameter:
    """An adapter's parameter beside a weight; the attributes tell Megatron how to count its gradient norm."""
    parameter = nn.Parameter(torch.zeros(*shape, dtype=like.dtype, device=like.device))
    tensor_parallel.set_tensor_model_parallel_attributes(parameter, sharded is not None, sharded or 0, 1)
    parameter.allreduce = True
    return parameter


def _sharded(
    module: nn.Module, split: dict[str, int], prefix: str, offsets: tuple, metadata: dict | None
) -> dict[str, Any]:
    """``split``: parameter -> the dimension along which tensor ranks hold parts of it; the others are whole."""
    assert metadata is not None  # Megatron's layers ask for it too
    content = module.state_dict(prefix="", keep_vars=True)
    groups = {"tp_group": module.tp_group, "dp_cp_group": metadata["dp_cp_group"]}
    return make_sharded_tensors_for_checkpoint(content, prefix, split, offsets, **groups)


def _dropped(module: LoraColumnLinear | LoraRowLinear | LoraGroupedExperts, hidden: Tensor, split: bool) -> Tensor:
    """Dropout of an adapter's input; tensor ranks draw apart where each holds a part of it, alike where all hold it."""
    chance = module.lora.lora_dropout
    if not chance or not module.training:
        return hidden
    if not split:
        return functional.dropout(hidden, chance)
    with random_streams().fork():
        return functional.dropout(hidden, chance)
