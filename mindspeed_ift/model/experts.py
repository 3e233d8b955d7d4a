"""A mixture of experts on Megatron's MoELayer: Qwen3's router, and the experts of a rank as one module.

Which token goes where is Megatron's; how tokens get there, see `dispatch`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mindspeed_ift.devices.device import current
from mindspeed_ift.mcore import (
    ModuleSpec,
    MoEAuxLossAutoScaler,
    MoELayer,
    MoESubmodules,
    ProcessGroupCollection,
    ShardedTensor,
    TopKRouter,
    TransformerConfig,
    part,
    tensor_parallel,
)

# Shapes: T tokens at this rank's experts, E experts of this rank, H hidden size, F width of an expert on this rank.


def experts_spec() -> ModuleSpec:
    """What stands in the place of the feed-forward block in a layer with experts."""
    return ModuleSpec(module=MoELayer, submodules=MoESubmodules(experts=part(GroupedExperts), router=BalancedRouter))


class BalancedRouter(TopKRouter):
    """Megatron's router, whose loss for unequal load is weighed for gradients that are divided by the units of the loss.

    Attributes:
        balance_scale: what the loss of a micro-batch is multiplied by; see `balance_scale_of_step`.
        balance_sum: of the losses so far, without coefficient; this rank's tokens' part of it. None: none yet.
    """

    balance_scale: float = 1.0
    balance_sum: Tensor | None = None

    def attach_and_log_load_balancing_loss(
        self, activation: Tensor, aux_loss_coeff: float, aux_loss: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        """Give ``aux_loss`` (scalar, coefficient in it) its gradient when that of ``activation`` comes by."""
        own = aux_loss.detach() / aux_loss_coeff
        self.balance_sum = own if self.balance_sum is None else self.balance_sum + own
        return MoEAuxLossAutoScaler.apply(activation, aux_loss * self.balance_scale)


class GroupedExperts(nn.Module):
    """The experts of this rank, as Megatron's GroupedMLP keeps them, each a gated feed-forward block.

    ``weight1`` ``[H, E * 2F]`` is ``[E, H, 2F]`` in memory, gate before up; ``weight2`` ``[E * F, H]`` is ``[E, F, H]``.

    Args:
        num_local_experts: E.
        config: sizes, dtype, how fresh weights are drawn.
        pg_collection: who shares the experts.
    """

    def __init__(
        self, num_local_experts: int, config: TransformerConfig, pg_collection: ProcessGroupCollection, **_: Any
    ) -> None:
        super().__init__()
        self.num_local_experts, self.config = num_local_experts, config
        self.ep_group, self.tp_group, self.dp_group = pg_collection.ep, pg_collection.expt_tp, pg_collection.expt_dp
        self.multiply, self.activate = current().kernels.grouped_matmul, current().kernels.swiglu
        hidden, width = config.hidden_size, config.moe_ffn_hidden_size // self.tp_group.size()
        self.weight1 = _parameter(config, (hidden, num_local_experts * 2 * width), sharded=1)
        self.weight2 = _parameter(config, (num_local_experts * width, hidden), sharded=0)
        if config.use_cpu_initialization:
            self._draw()

    def forward(self, tokens_TH: Tensor, tokens_per_expert: Tensor, weights_T: Tensor) -> tuple[Tensor, None]:
        """Each token through its expert, times its weight; under expert tensor parallelism a part of the sum.

        Args:
            tokens_TH: ordered by expert.
            tokens_per_expert: how many each has, ``[E]`` on the host.
            weights_T: of the token's experts, this one's.
        """
        counts = tokens_per_expert.tolist()
        inner = self.activate(self.product(1, tokens_TH, counts))
        inner = (inner * weights_T[:, None]).to(tokens_TH.dtype)
        return self.product(2, inner, counts), None

    def matrices(self, number: int) -> Tensor:
        """``weight1`` as ``[E, H, 2F]``, ``weight2`` as ``[E, F, H]``."""
        hidden, experts = self.config.hidden_size, self.num_local_experts
        return self.weight1.view(experts, hidden, -1) if number == 1 else self.weight2.view(experts, -1, hidden)

    def product(self, number: int, tokens: Tensor, counts: list[int]) -> Tensor:
        """Each expert's tokens times its matrix of that number."""
        return self.multiply(tokens, self.matrices(number), counts)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """Which part of which whole tensor this rank holds, for checkpoints that any layout reads.

        The whole tensors are ``[experts, H, 2, F]`` and ``[experts, F, H]``, as in memory.
        """
        assert not sharded_offsets, "layers have names of their own"
        experts, hidden = self.num_local_experts, self.config.hidden_size
        replica = (0, 0, self.dp_group.rank())
        by_expert = (0, self.ep_group.rank(), self.ep_group.size())
        content = {}
        for name, shape, dim in (("weight1", (experts, hidden, 2, -1), 3), ("weight2", (experts, -1, hidden), 1)):
            by_tensor = (dim, self.tp_group.rank(), self.tp_group.size())
            data = getattr(self, name).view(shape)
            content[prefix + name] = ShardedTensor.from_rank_offsets(
                prefix + name, data, by_expert, by_tensor, replica_id=replica
            )
        return content

    @torch.no_grad()
    def _draw(self) -> None:
        """Fresh weights, drawn for all experts whole and then cut, so that every layout starts from the same."""
        config, experts = self.config, self.num_local_experts
        first = experts * self.ep_group.rank()
        size, rank = self.tp_group.size(), self.tp_group.rank()
        weight1, weight2 = self.matrices(1), self.matrices(2)
        for number in range(experts * self.ep_group.size()):
            gate, up, down = (
                torch.empty(shape, dtype=torch.float32)
                for shape in [(config.moe_ffn_hidden_size, config.hidden_size)] * 2
                + [(config.hidden_size, config.moe_ffn_hidden_size)]
            )
            for whole in (gate, up):
                config.init_method(whole)
            config.output_layer_init_method(down)
            if first <= number < first + experts:
                parts = [whole.chunk(size, 0)[rank] for whole in (gate, up)]
                weight1[number - first].copy_(torch.cat(parts).T)
                weight2[number - first].copy_(down.chunk(size, 1)[rank].T)


def hand_on_pads(decoder: nn.Module) -> None:
    """Give each layer the ``padding_mask`` that the decoder got.

    With --recompute-method block Megatron gives it only to the layers that are recomputed, so that the others' routers would
    count pads.
    """
    pads: list[Tensor | None] = [None]

    def keep(_module: nn.Module, _arguments: Any, options: dict[str, Any]) -> None:
        pads[0] = options.get("padding_mask")

    def fill_in(_module: nn.Module, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        return (arguments, {**options, "padding_mask": pads[0]}) if options.get("padding_mask") is None else None

    decoder.register_forward_pre_hook(keep, with_kwargs=True)
    for layer in decoder.layers:
        layer.register_forward_pre_hook(fill_in, with_kwargs=True)


def balance_scale_of_step(units: float, micro_batches: float) -> float:
    """What a micro-batch's loss for unequal load is multiplied by before its gradient is divided by the units of the loss.

    The loss of a step is the mean over the micro-batches of all replicas.

    Args:
        units: of the global batch; learnt tokens, unless --loss-reduction says otherwise.
        micro_batches: of all replicas.
    """
    return units / micro_batches


def routers(stages: Iterable[nn.Module]) -> list[BalancedRouter]:
    """The routers of this rank's stages."""
    return [module for stage in stages for module in stage.modules() if isinstance(module, BalancedRouter)]


def _parameter(config: TransformerConfig, shape: tuple[int, int], sharded: int) -> nn.Parameter:
    device = "cpu" if config.use_cpu_initialization else current().torch_device
    parameter = nn.Parameter(torch.empty(shape, dtype=config.params_dtype, device=device))
    # Every rank that shares experts holds others: all of them count in the gradient norm.
    tensor_parallel.set_tensor_model_parallel_attributes(parameter, True, sharded, 1)
    # Reduced over the ranks that hold the same experts, which are others than those of the same tensor rank: with one
    # expert rank too, if experts are not split as all else is.
    parameter.allreduce = False
    return parameter
