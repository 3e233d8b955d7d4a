"""Which modules get LoRA adapters, how large, and where they come from and go to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

LORA_TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
"""Megatron's names of the linear layers of a transformer layer, all of which can carry an adapter."""

MODULES_TO_SAVE = (
    *("word_embeddings", "output_layer", "final_layernorm"),
    *("input_layernorm", "pre_mlp_layernorm", "q_layernorm", "k_layernorm", "router"),
    *LORA_TARGETS,
)
"""Megatron's names of the modules that have weights."""

_OF_EXPERTS = {"weight1": "linear_fc1", "weight2": "linear_fc2"}
"""Names of experts' parameters -> the modules that they are, of all experts together."""


@dataclass(frozen=True)
class LoraFlags:
    """Low-rank adapters (Hu et al. 2021) instead of all weights; on when --lora-target-modules names a module."""

    lora_target_modules: tuple[str, ...] = ()
    """Modules that get adapters: linear_qkv linear_proj linear_fc1 linear_fc2. All other weights are frozen."""
    lora_r: int = 16
    """Rank of the adapters."""
    lora_alpha: int = 32
    """Their output is scaled by this over the rank."""
    lora_dropout: float = 0.0
    """Dropout of their input, in training."""
    use_rslora: bool = False
    """Rank-stabilized: scale by alpha over the square root of the rank (Kalajdzievski 2023)."""
    use_dora: bool = False
    """Learn each row's length apart from its direction (DoRA, Liu et al. 2024)."""
    lora_modules_to_save: tuple[str, ...] = ()
    """Further modules that are trained whole: word_embeddings, output_layer, input_layernorm, ..."""
    lora_load: Path | None = None
    """--save folder of an adapter run: its adapters, and unless --finetune is given its step and optimizer."""
    lora_ckpt_filter: bool = False
    """Save only what is trained, without the frozen weights."""

    @property
    def active(self) -> bool:
        """Whether adapters are asked for."""
        return bool(self.lora_target_modules)

    @property
    def scale(self) -> float:
        """What the adapters' output is multiplied by."""
        return self.lora_alpha / (math.sqrt(self.lora_r) if self.use_rslora else self.lora_r)

    def is_trained(self, name: str, tied: bool) -> bool:
        """Whether a parameter of that name is trained: an adapter, or of a module to save.

        A ``tied`` model has an output layer only where its last pipeline stage holds a copy of the embedding.
        """
        module, _, last = name.rpartition(".")
        module = _OF_EXPERTS.get(last, module.rpartition(".")[2])
        if tied and module == "output_layer":
            module = "word_embeddings"
        return last.startswith("lora_") or module in self.lora_modules_to_save
