"""One table: each Megatron tensor, the Hugging Face tensors it is made of, the transform, and the sharded dimension."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mindspeed_ift.checkpoint.transforms import COPY, GATE_UP, QKV, VOCABULARY, Transform
from mindspeed_ift.config.architecture import Architecture


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        megatron: name in a stage's state dict, ``{layer}`` counted inside the stage.
        hugging_face: names in the Hugging Face folder, ``{layer}`` counted over the model.
        transform: makes the one of the others, and back.
    """

    megatron: str
    hugging_face: tuple[str, ...]
    transform: Transform


EMBEDDING = Entry("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), VOCABULARY)
FINAL_NORM = Entry("decoder.final_layernorm.weight", ("model.norm.weight",), COPY)
OUTPUT = Entry("output_layer.weight", ("lm_head.weight",), VOCABULARY)
TIED_OUTPUT = Entry("output_layer.weight", ("model.embed_tokens.weight",), VOCABULARY)

_M, _H = "decoder.layers.{layer}.", "model.layers.{layer}."
LAYER = (
    Entry(_M + "input_layernorm.weight", (_H + "input_layernorm.weight",), COPY),
    Entry(
        _M + "self_attention.linear_qkv.weight",
        tuple(_H + f"self_attn.{part}_proj.weight" for part in "qkv"),
        QKV,
    ),
    Entry(_M + "self_attention.q_layernorm.weight", (_H + "self_attn.q_norm.weight",), COPY),
    Entry(_M + "self_attention.k_layernorm.weight", (_H + "self_attn.k_norm.weight",), COPY),
    Entry(_M + "self_attention.linear_proj.weight", (_H + "self_attn.o_proj.weight",), Transform("copy", 1)),
    Entry(_M + "pre_mlp_layernorm.weight", (_H + "post_attention_layernorm.weight",), COPY),
    Entry(_M + "mlp.linear_fc1.weight", (_H + "mlp.gate_proj.weight", _H + "mlp.up_proj.weight"), GATE_UP),
    Entry(_M + "mlp.linear_fc2.weight", (_H + "mlp.down_proj.weight",), Transform("copy", 1)),
)


def stage_entries(
    architecture: Architecture, layers: range, *, first_stage: bool, last_stage: bool
) -> Iterator[tuple[str, tuple[str, ...], Transform]]:
    """(Megatron name, Hugging Face names, transform) of every tensor of a pipeline stage.

    Args:
        architecture: says whether the head is tied.
        layers: global, zero-based numbers of the stage's layers.
        first_stage: the stage embeds tokens.
        last_stage: the stage has the head. A tied head on another stage than the embedding is a copy of it.
    """
    if first_stage:
        yield EMBEDDING.megatron, EMBEDDING.hugging_face, EMBEDDING.transform
    for inside, layer in enumerate(layers):
        for entry in LAYER:
            names = tuple(name.format(layer=layer) for name in entry.hugging_face)
            yield entry.megatron.format(layer=inside), names, entry.transform
    if last_stage:
        yield FINAL_NORM.megatron, FINAL_NORM.hugging_face, FINAL_NORM.transform
        if not architecture.tied:
            yield OUTPUT.megatron, OUTPUT.hugging_face, OUTPUT.transform
        elif not first_stage:
            yield TIED_OUTPUT.megatron, TIED_OUTPUT.hugging_face, TIED_OUTPUT.transform


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
            prefix + "self_attn.q_norm.weight": (a.kv_channels,),
            prefix + "self_attn.k_norm.weight": (a.kv_channels,),
            prefix + "self_attn.o_proj.weight": (a.hidden_size, queries),
            prefix + "post_attention_layernorm.weight": (a.hidden_size,),
            prefix + "mlp.gate_proj.weight": (a.ffn_hidden_size, a.hidden_size),
            prefix + "mlp.up_proj.weight": (a.ffn_hidden_size, a.hidden_size),
            prefix + "mlp.down_proj.weight": (a.hidden_size, a.ffn_hidden_size),
        }
    shapes["model.norm.weight"] = (a.hidden_size,)
    if not a.tied:
        shapes["lm_head.weight"] = (a.vocab_size, a.hidden_size)
    return shapes
