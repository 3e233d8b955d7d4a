"""The arguments that Megatron keeps beside the weights of a rank: MindSpeed-LLM's converter asks them what model it is."""

from __future__ import annotations

import argparse

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.layout import Layout


def arguments_of(architecture: Architecture, layout: Layout, padded_vocab: int, iteration: int) -> argparse.Namespace:
    """By the names of Megatron and MindSpeed-LLM.

    Args:
        architecture: of the model.
        layout: by which its files are cut.
        padded_vocab: rows of the embedding over all tensor ranks.
        iteration: steps done.
    """
    stages = [len(stage) for stage in layout.stage_layers(architecture.num_layers)]
    chunks = layout.chunks(architecture.num_layers)
    even = len(set(stages)) == 1
    told = argparse.Namespace(
        iteration=iteration,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=layout.tensor_of_experts,
        num_layers_per_virtual_pipeline_stage=stages[0] if chunks > 1 else None,
        num_layer_list=None if even else ",".join(map(str, stages)),
        num_layers=architecture.num_layers,
        hidden_size=architecture.hidden_size,
        ffn_hidden_size=architecture.ffn_hidden_size,
        num_attention_heads=architecture.num_attention_heads,
        num_query_groups=architecture.num_query_groups,
        num_key_value_heads=architecture.num_query_groups,
        group_query_attention=architecture.num_query_groups < architecture.num_attention_heads,
        kv_channels=architecture.kv_channels,
        qk_layernorm=architecture.qk_layernorm,
        vocab_size=architecture.vocab_size,
        padded_vocab_size=padded_vocab,
        max_position_embeddings=architecture.max_position_embeddings,
        add_position_embedding=True,
        position_embedding_type="rope",
        rotary_base=architecture.rotary_base,
        norm_epsilon=architecture.norm_epsilon,
        normalization="RMSNorm",
        swiglu=True,
        add_bias_linear=False,
        untie_embeddings_and_output_weights=not architecture.tied,
    )
    if architecture.add_qkv_bias:  # who asks looks whether it is there, not what it is
        told.add_qkv_bias = True
    if architecture.num_experts:
        told.num_experts = architecture.num_experts
        told.moe_router_topk = architecture.moe_router_topk
        told.moe_ffn_hidden_size = architecture.moe_ffn_hidden_size
        told.first_k_dense_replace = len(architecture.dense_layers)
    return told
