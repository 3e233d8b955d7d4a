"""Layer specs: which class serves as norm, attention and activation. The seam that replaces patching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mindspeed_ift.config.lora import LoraFlags
from mindspeed_ift.devices.device import current
from mindspeed_ift.mcore import (
    ModuleSpec,
    TransformerBlockSubmodules,
    TransformerConfig,
    get_gpt_layer_local_spec,
    part,
    submodules,
)
from mindspeed_ift.model.attention import BoundaryAttention, RotaryAttention
from mindspeed_ift.model.experts import experts_spec
from mindspeed_ift.model.lora import add_adapters


class RMSNorm(nn.Module):
    """RMSNorm through the device's kernel; Megatron's own refuses sequence parallelism.

    Args:
        config: says whether the input is split along the sequence.
        hidden_size: size of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=current().torch_device))
        # Under sequence parallelism each tensor rank sees part of the positions; Megatron sums these gradients.
        self.weight.sequence_parallel = config.sequence_parallel
        self.eps = eps
        self.kernel = current().kernels.rms_norm

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalize the last dimension of ``hidden``."""
        return self.kernel(hidden, self.weight, self.eps)


class SwiGLU(nn.Module):
    """The activation of a gated feed-forward block through the device's kernel."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.kernel = current().kernels.swiglu

    def forward(self, gate_and_up: Tensor) -> Tensor:
        """``[..., 2F]`` to ``[..., F]``."""
        return self.kernel(gate_and_up)

    def sharded_state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Nothing: it has no parameters. Megatron asks every module of a feed-forward block."""
        return {}


def block_spec(
    experts: Sequence[bool], qk_layernorm: bool, lora: LoraFlags | None, drawn_from: Sequence[int | None]
) -> TransformerBlockSubmodules:
    """The spec of one stage's layers: Megatron's local layers with our norm and attention, and adapters if asked for.

    Args:
        experts: for each layer, whether it has experts.
        qk_layernorm: RMSNorm on every query and key head.
        lora: adapters, or None.
        drawn_from: for each layer, the seed of its fresh weights; None where none are drawn.
    """
    layers = [_layer_spec(qk_layernorm, kind, lora) for kind in experts]
    for layer, seed in zip(layers, drawn_from, strict=True):
        attention = layer.submodules.self_attention
        attention.params = {**attention.params, "drawn_from": seed}
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=RMSNorm)


def _layer_spec(qk_layernorm: bool, experts: bool, lora: LoraFlags | None) -> ModuleSpec:
    layer = get_gpt_layer_local_spec(qk_layernorm=qk_layernorm, normalization="RMSNorm")
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    parts.self_attention.module = RotaryAttention
    attention = parts.self_attention.submodules
    attention.core_attention = part(BoundaryAttention)
    if qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    if experts:
        parts.mlp = experts_spec()
    else:
        submodules(parts.mlp).activation_func = SwiGLU
    if lora is not None:
        add_adapters(layer, lora)
    return layer
