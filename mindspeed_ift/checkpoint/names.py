"""One table: each Megatron tensor, the Hugging Face tensors it is made of, the transform, and the sharded dimension."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mindspeed_ift.checkpoint.transforms import (
    COPY,
    EXPERTS_IN,
    EXPERTS_OUT,
    GATE_UP,
    QKV,
    VOCABULARY,
    Transform,
)
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.layout import Layout


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        megatron: name in a stage's state dict, ``{layer}`` counted inside the stage.
        hugging_face: names in the Hugging Face folder, ``{layer}`` counted over the model; those with ``{expert}`` once for
            each expert.
        transform: makes the one of the others, and back.
    """

    megatron: str
    hugging_face: tuple[str, ...]
    transform: Transform


class Stage(NamedTuple):
    """Layers of a model that lie together, and whether the ends of the model lie with them.

    Attributes:
        layers: their numbers over the model, from 0.
        first: the embedding is there.
        last: final norm and head are there. A tied head on another stage than the embedding is a copy of it.
    """

    layers: range
    first: bool = True
    last: bool = True


def stages_of(layers: Sequence[range]) -> list[Stage]:
    """All stages of a model, by their layers, in the order in which a token meets them."""
    return [Stage(one, number == 0, number == len(layers) - 1) for number, one in enumerate(layers)]


def experts_of(architecture: Architecture, layout: Layout, expert_rank: int) -> range:
    """Numbers of the experts that an expert rank holds."""
    each = architecture.num_experts // layout.expert
    return range(expert_rank * each, (expert_rank + 1) * each)


EMBEDDING = Entry("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), VOCABULARY)
FINAL_NORM = Entry("decoder.final_layernorm.weight", ("model.norm.weight",), COPY)
OUTPUT = Entry("output_layer.weight", ("lm_head.weight",), VOCABULARY)
TIED_OUTPUT = Entry("output_layer.weight", ("model.embed_tokens.weight",), VOCABULARY)

_M, _H = "decoder.layers.{layer}.", "model.layers.{layer}."
BEFORE_ATTENTION = (
    Entry(_M + "input_layernorm.weight", (_H + "input_layernorm.weight",), COPY),
    Entry(
        _M + "self_attention.linear_qkv.weight",
        tuple(_H + f"self_attn.{part}_proj.weight" for part in "qkv"),
        QKV,
    ),
)
QKV_BIAS = (
    Entry(_M + "self_attention.linear_qkv.bias", tuple(_H + f"self_attn.{part}_proj.bias" for part in "qkv"), QKV),
)
QK_NORMS = (
    Entry(_M + "self_attention.q_layernorm.weight", (_H + "self_attn.q_norm.weight",), COPY),
    Entry(_M + "self_attention.k_layernorm.weight", (_H + "self_attn.k_norm.weight",), COPY),
)
AFTER_ATTENTION = (
    Entry(_M + "self_attention.linear_proj.weight", (_H + "self_attn.o_proj.weight",), Transform("copy", 1)),
    Entry(_M + "pre_mlp_layernorm.weight", (_H + "post_attention_layernorm.weight",), COPY),
)
DENSE = (
    Entry(_M + "mlp.linear_fc1.weight", (_H + "mlp.gate_proj.weight", _H + "mlp.up_proj.weight"), GATE_UP),
    Entry(_M + "mlp.linear_fc2.weight", (_H + "mlp.down_proj.weight",), Transform("copy", 1)),
)
_E = _H + "mlp.experts.{expert}."
EXPERTS = (
    Entry(_M + "mlp.router.weight", (_H + "mlp.gate.weight",), COPY),
    Entry(_M + "mlp.experts.weight1", (_E + "gate_proj.weight", _E + "up_proj.weight"), EXPERTS_IN),
    Entry(_M + "mlp.experts.weight2", (_E + "down_proj.weight",), EXPERTS_OUT),
)


def stage_entries(
    architecture: Architecture, stage: Stage, experts: range | None = None
) -> Iterator[tuple[str, tuple[str, ...], Transform]]:
    """(Megatron name, Hugging Face names, transform) of every tensor of a pipeline stage.

    Args:
        architecture: says whether the head is tied.
        stage: which.
        experts: numbers of an expert rank's experts; None: all.
    """
    numbers = range(architecture.num_experts) if experts is None else experts
    if stage.first:
        yield EMBEDDING.megatron, EMBEDDING.hugging_face, EMBEDDING.transform
    for inside, layer in enumerate(stage.layers):
        for entry in _of_layer(architecture, layer):
            each = numbers if entry.transform.of_experts else range(1)
            names = tuple(name.format(layer=layer, expert=one) for one in each for name in entry.hugging_face)
            yield entry.megatron.format(layer=inside), names, entry.transform
    if stage.last:
        yield FINAL_NORM.megatron, FINAL_NORM.hugging_face, FINAL_NORM.transform
        if not architecture.tied:
            yield OUTPUT.megatron, OUTPUT.hugging_face, OUTPUT.transform
        elif not stage.first:
            yield TIED_OUTPUT.megatron, TIED_OUTPUT.hugging_face, TIED_OUTPUT.transform


def _of_layer(architecture: Architecture, layer: int) -> tuple[Entry, ...]:
    return (
        *BEFORE_ATTENTION,
        *(QKV_BIAS if architecture.add_qkv_bias else ()),
        *(QK_NORMS if architecture.qk_layernorm else ()),
        *AFTER_ATTENTION,
        *(EXPERTS if architecture.has_experts(layer) else DENSE),
    )


def hugging_face_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Every tensor of the Hugging Face folder and its shape, in the order of the model."""
    a = architecture
    queries, keys = a.num_attention_heads * a.kv_channels, a.num_query_groups * a.kv_channels
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (a.vocab_size, a.hidden_size)}
    for layer in range(a.num_layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (a.hidden_size,),
            prefix + "self_attn.q_proj.weight": (queries, a.hidden_size),
            prefix + "self_attn.k_proj.weight": (keys, a.hidden_size),
            prefix + "self_attn.v_proj.weight": (keys, a.hidden_size),
        }
        if a.add_qkv_bias:
            shapes |= {f"{prefix}self_attn.{part}_proj.bias": (queries if part == "q" else keys,) for part in "qkv"}
        if a.qk_layernorm:
            shapes |= {f"{prefix}self_attn.{part}_norm.weight": (a.kv_channels,) for part in "qk"}
        shapes |= {
            prefix + "self_attn.o_proj.weight": (a.hidden_size, queries),
            prefix + "post_attention_layernorm.weight": (a.hidden_size,),
        }
        if a.has_experts(layer):
            shapes[prefix + "mlp.gate.weight"] = (a.num_experts, a.hidden_size)
            for expert in range(a.num_experts):
                shapes |= _feed_forward(f"{prefix}mlp.experts.{expert}.", a.hidden_size, a.moe_ffn_hidden_size)
        else:
            shapes |= _feed_forward(prefix + "mlp.", a.hidden_size, a.ffn_hidden_size)
    shapes["model.norm.weight"] = (a.hidden_size,)
    if not a.tied:
        shapes["lm_head.weight"] = (a.vocab_size, a.hidden_size)
    return shapes


def _feed_forward(prefix: str, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        prefix + "gate_proj.weight": (width, hidden),
        prefix + "up_proj.weight": (width, hidden),
        prefix + "down_proj.weight": (hidden, width),
    }
