"""Architecture and layout in, the number of parameters of a rank out, module by module.

The modules and their split are those of `checkpoint.names`; the tests hold the counts to the built model's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.layout import Layout
from mindspeed_ift.config.lora import LoraFlags

_EXPERTS = {"weight1": "linear_fc1", "weight2": "linear_fc2"}
"""Weights of all experts of a rank -> the name that adapters know them by."""


@dataclass(frozen=True)
class Count:
    """Parameters of a rank.

    Attributes:
        held: all of them.
        trained: those with a gradient, experts left out.
        trained_experts: those of experts, which other ranks hold too than all else.
        largest: trained ones of the largest tensor.
        largest_of_layer: trained ones of the largest tensor of a layer.
    """

    held: int = 0
    trained: int = 0
    trained_experts: int = 0
    largest: int = 0
    largest_of_layer: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(
            self.held + other.held,
            self.trained + other.trained,
            self.trained_experts + other.trained_experts,
            max(self.largest, other.largest),
            max(self.largest_of_layer, other.largest_of_layer),
        )


@lru_cache(maxsize=4096)  # a search asks for the same stage again and again
def stage_parameters(
    architecture: Architecture, layout: Layout, lora: LoraFlags, padded_vocab: int, stage: int
) -> Count:
    """What a rank holds of one stage.

    Args:
        architecture: of the model.
        layout: degrees of parallelism.
        lora: adapters, or none.
        padded_vocab: rows of the embedding over all tensor ranks.
        stage: its number, in the order in which a token meets them.
    """
    stages = layout.stage_layers(architecture.num_layers)
    first, last = stage == 0, stage == len(stages) - 1
    count = Count()
    for layer in stages[stage]:
        for name, shape in _layer_shapes(architecture, layout, layer).items():
            one = _module(name, shape, architecture, layout, lora)
            count += Count(one.held, one.trained, one.trained_experts, one.largest, one.largest)
    rows = padded_vocab // layout.tensor, architecture.hidden_size
    ends = {"word_embeddings": rows} if first else {}
    if last:
        ends["final_layernorm"] = (1, architecture.hidden_size)
        # Of a tied model the last stage holds a copy, unless it is the first too.
        if not (architecture.tied and first):
            ends["output_layer"] = rows
    for name, shape in ends.items():
        count += _module(name, shape, architecture, layout, lora)
    return count


def model_parameters(architecture: Architecture) -> tuple[int, int]:
    """Of the whole model, without padding; and how many of them one token meets."""
    whole = stage_parameters(architecture, Layout(), LoraFlags(), architecture.vocab_size, 0)
    unused = 0
    if architecture.num_experts:
        unused = whole.trained_experts // architecture.num_experts
        unused *= architecture.num_experts - architecture.moe_router_topk
    return whole.held, whole.held - unused


def _layer_shapes(architecture: Architecture, layout: Layout, layer: int) -> dict[str, tuple[int, int]]:
    """Rows and columns of each module's weight on a rank."""
    a, tensor = architecture, layout.tensor
    queries, keys = a.num_attention_heads * a.kv_channels // tensor, a.num_query_groups * a.kv_channels // tensor
    shapes = {
        "input_layernorm": (1, a.hidden_size),
        "linear_qkv": (queries + 2 * keys, a.hidden_size + (1 if a.add_qkv_bias else 0)),
        "linear_proj": (a.hidden_size, queries),
        "pre_mlp_layernorm": (1, a.hidden_size),
    }
    if a.qk_layernorm:
        shapes |= {"q_layernorm": (1, a.kv_channels), "k_layernorm": (1, a.kv_channels)}
    if a.has_experts(layer):
        width = a.moe_ffn_hidden_size // layout.tensor_of_experts
        experts = a.num_experts // layout.expert
        inner, outer = (experts * 2 * width, a.hidden_size), (experts * width, a.hidden_size)
        return shapes | {"router": (a.num_experts, a.hidden_size), "weight1": inner, "weight2": outer}
    width = a.ffn_hidden_size // tensor
    return shapes | {"linear_fc1": (2 * width, a.hidden_size), "linear_fc2": (a.hidden_size, width)}


def _module(name: str, shape: tuple[int, int], architecture: Architecture, layout: Layout, lora: LoraFlags) -> Count:
    rows, columns = shape
    whole, of_experts = rows * columns, name in _EXPERTS
    if not lora.active or lora.is_trained(f"{name}.weight" if not of_experts else name, architecture.tied):
        return Count(whole, 0, whole, whole) if of_experts else Count(whole, whole, 0, whole)
    if _EXPERTS.get(name, name) not in lora.lora_target_modules:
        return Count(held=whole)
    if of_experts:
        inputs = architecture.num_experts // layout.expert * columns  # of every expert of its own
        added = lora.lora_r * (rows + inputs)
        return Count(whole + added, 0, added, lora.lora_r * max(rows, inputs))
    added = lora.lora_r * (rows + columns) + (rows if lora.use_dora else 0)
    return Count(whole + added, added, 0, lora.lora_r * max(rows, columns))
