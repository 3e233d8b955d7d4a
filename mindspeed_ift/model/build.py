"""Architecture and layout in, this rank's stage of a Megatron-core GPT out."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.lora import LoraFlags
from mindspeed_ift.devices.device import current
from mindspeed_ift.mcore import NO_GRAPHS, GPTModel, TransformerConfig, unable
from mindspeed_ift.model import head
from mindspeed_ift.model.backend import block_spec
from mindspeed_ift.model.dispatch import dispatch_by_kernels
from mindspeed_ift.model.experts import hand_on_pads
from mindspeed_ift.model.lora import freeze
from mindspeed_ift.model.rotary import PositionRotary
from mindspeed_ift.parallel.context.attention import communication_type
from mindspeed_ift.parallel.groups import Groups


@dataclass(frozen=True)
class ModelOptions:
    """What a model is built with besides its architecture.

    Attributes:
        padded_vocab: rows of the embedding over all tensor ranks.
        dtype: of weights and activations.
        variable_lengths: micro-batches differ in length; see `parallel.pipeline`.
        recompute: granularity, method and number of layers as in Megatron's flags, or empty.
        loss_chunk_size: learnt positions whose logits exist at once; None: see `head.loss_sum`.
        fresh: draw weights; False leaves them undefined for `weights.fill`, which fills every one. Each rank draws
            matrices whole, minutes for a model of billions.
        seed: of the layers' fresh weights: each draws for itself, so that every layout starts from the same.
        lora: adapters to train instead of all weights, or None.
        aux_loss_coeff: of the loss for unequal load of experts; 0: none.
    """

    padded_vocab: int
    dtype: torch.dtype = torch.float32
    variable_lengths: bool = False
    recompute: tuple[str | None, str | None, int | None] = (None, None, None)
    loss_chunk_size: int | None = None
    fresh: bool = True
    seed: int = 1234
    lora: LoraFlags | None = None
    aux_loss_coeff: float = 0.0


class Qwen3Model(GPTModel):
    """Megatron's GPT with rotary from position ids and a head on learnt positions.

    Both overridden methods keep Megatron's names; everything between embedding and head is Megatron's own.
    """

    def __init__(
        self, config: TransformerConfig, architecture: Architecture, options: ModelOptions, groups: Groups, chunk: int
    ) -> None:
        stages, stage = groups.layout.stage_layers(architecture.num_layers), groups.stage(chunk)
        layers = stages[stage]
        super().__init__(
            config,
            block_spec(
                list(map(architecture.has_experts, layers)),
                architecture.qk_layernorm,
                options.lora,
                [zlib.crc32(f"{options.seed} {layer}".encode()) if options.fresh else None for layer in layers],
            ),
            vocab_size=options.padded_vocab,
            max_sequence_length=architecture.max_position_embeddings,
            pre_process=stage == 0,
            post_process=stage == len(stages) - 1,
            share_embeddings_and_output_weights=architecture.tied,
            position_embedding_type="rope",
            rotary_base=architecture.rotary_base,
            pg_collection=groups.collection,
            vp_stage=chunk if groups.chunks > 1 else None,
        )
        self.architecture, self.options, self.layer_numbers = architecture, options, layers
        dispatch_by_kernels(self.decoder.layers, groups.collection)
        if options.aux_loss_coeff and "block" in options.recompute:
            hand_on_pads(self.decoder)
        self.rotary_pos_emb = PositionRotary(architecture.kv_channels, architecture.rotary_base, options.dtype)

    def forward(
        self,
        tokens: Tensor,
        position_ids: Tensor,
        boundaries: Tensor | None,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        pads: Tensor | None = None,
        each: bool = False,
        learnt: Tensor | None = None,
    ) -> Tensor:
        """Run this stage on a micro-batch.

        Args:
            tokens: int64 ``[B, S]``, with context parallelism this rank's positions of the rows, as below.
            position_ids: int64 ``[B, S]``.
            boundaries: of the whole rows, int32 ``[n + 1]`` on the host, or None.
            labels: int64 ``[B, S]``, shifted; None asks for logits.
            loss_mask: fp32 ``[B, S]``, where there are labels.
            pads: bool ``[B, S]``, where no sample is: left out where the load of experts is balanced. None: nowhere.
            each: do not sum the loss, see `head.loss_sum`.
            learnt: of `head.learnt_positions`; None: the device is asked.

        Returns:
            Hidden states for the next stage; on the last stage the loss sum (fp32 scalar; with ``each`` fp32 ``[2, L]``), or
            without labels this tensor rank's logits ``[B, S, padded vocabulary / TP]``.
        """
        self.rotary_pos_emb.set_positions(position_ids)
        self._each, self._learnt = each, learnt
        if pads is not None and self.config.sequence_parallel and not self.pre_process:
            pads = pads.chunk(self.pg_collection.tp.size(), 1)[
                self.pg_collection.tp.rank()
            ]  # Megatron: first stage only
        return super().forward(tokens, position_ids, boundaries, labels=labels, loss_mask=loss_mask, padding_mask=pads)

    def _postprocess(
        self, hidden_states: Tensor, *_: Any, labels: Tensor | None = None, loss_mask: Tensor | None = None, **__: Any
    ) -> Tensor:
        if not self.post_process:
            return hidden_states
        shared = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if shared else self.output_layer.weight
        if labels is None:
            return self.output_layer(hidden_states, weight=weight)[0].transpose(0, 1).contiguous()
        # With --overlap-param-gather Megatron waits for a weight where its module is called, which the head does not do.
        for wait in self.output_layer._forward_pre_hooks.values():
            wait(self.output_layer, ())
        return head.loss_sum(
            hidden_states,
            weight,
            labels,
            loss_mask,
            vocab_size=self.architecture.vocab_size,
            groups=self.pg_collection,
            sequence_parallel=self.config.sequence_parallel,
            chunk_size=self.options.loss_chunk_size,
            each=self._each,
            positions_L=self._learnt,
        )


def build_stages(architecture: Architecture, options: ModelOptions, groups: Groups) -> list[Qwen3Model]:
    """Build this rank's stages on the current device; with adapters, all else frozen.

    Raises:
        UserError: the installed Megatron-core cannot do this.
    """
    stage_sizes = list(map(len, groups.layout.stage_layers(architecture.num_layers)))
    refusal = unable(balance=bool(architecture.num_experts and options.aux_loss_coeff), stage_sizes=stage_sizes)
    if refusal is not None:
        raise UserError(refusal)
    config = transformer_config(architecture, options, groups)
    stages = [Qwen3Model(config, architecture, options, groups, chunk) for chunk in range(groups.chunks)]
    for model in stages:
        if options.lora is not None:
            freeze(model, options.lora, architecture.tied)
        model.to(device=current().torch_device, dtype=options.dtype)
    return stages


def build_model(architecture: Architecture, options: ModelOptions, groups: Groups) -> Qwen3Model:
    """`build_stages` for a rank that holds one."""
    (model,) = build_stages(architecture, options, groups)
    return model


_INIT_METHODS = ("init_method", "output_layer_init_method", "embedding_init_method")


def _undrawn(weight: Tensor) -> Tensor:
    return weight


def transformer_config(architecture: Architecture, options: ModelOptions, groups: Groups) -> TransformerConfig:
    """Megatron's TransformerConfig for a Qwen3 in this layout."""
    granularity, method, num_layers = options.recompute
    full = granularity == "full"
    return TransformerConfig(
        num_layers=architecture.num_layers,
        hidden_size=architecture.hidden_size,
        ffn_hidden_size=architecture.ffn_hidden_size,
        num_attention_heads=architecture.num_attention_heads,
        num_query_groups=architecture.num_query_groups,
        kv_channels=architecture.kv_channels,
        qk_layernorm=architecture.qk_layernorm,
        add_qkv_bias=architecture.add_qkv_bias,
        add_bias_linear=False,
        normalization="RMSNorm",
        layernorm_epsilon=architecture.norm_epsilon,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=architecture.init_method_std,
        # Drawn whole on the host and then cut: every layout starts from the same weights. What is not drawn is made where
        # it will be. (Megatron's perform_initialization=False would also leave out what marks a weight as sharded, and
        # gradient norms of tensor parallel ranks would be wrong without a word.)
        use_cpu_initialization=options.fresh,
        **({} if options.fresh else dict.fromkeys(_INIT_METHODS, _undrawn)),
        tensor_model_parallel_size=groups.layout.tensor,
        pipeline_model_parallel_size=groups.layout.pipeline,
        pipeline_model_parallel_layout=_pipeline_layout(architecture, groups),
        context_parallel_size=groups.layout.context,
        cp_comm_type=communication_type(groups.layout),
        sequence_parallel=groups.layout.sequence_parallel,
        params_dtype=options.dtype,
        pipeline_dtype=options.dtype,
        bf16=options.dtype is torch.bfloat16,
        fp16=options.dtype is torch.float16,
        # In one batch, what two ranks that are each other's both neighbours send could not be told apart.
        overlap_p2p_comm=groups.chunks > 1,
        batch_p2p_comm=groups.chunks == 1,
        variable_seq_lengths=options.variable_lengths,
        # gloo sends from the tensor's own storage; freeing it while a send is in flight corrupts data without a word.
        deallocate_pipeline_outputs=False,
        calculate_per_token_loss=True,
        deterministic_mode=torch.are_deterministic_algorithms_enabled(),
        # Megatron asks for this of every model with variable lengths, experts or not.
        moe_token_dispatcher_type="alltoall",
        **_experts_config(architecture, options, groups),
        recompute_granularity=granularity,
        recompute_method=method,
        recompute_num_layers=(num_layers or 1) if full else None,
        **NO_GRAPHS,
        # Fusions that need CUDA extensions; the device's kernels are chosen by the specs instead.
        bias_activation_fusion=False,
        use_te_activation_func=True,  # no matter whose: the spec's activation gets gate and up together
        bias_dropout_fusion=False,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        apply_rope_fusion=False,
    )


def _experts_config(architecture: Architecture, options: ModelOptions, groups: Groups) -> dict[str, Any]:
    if not architecture.num_experts:
        return {}
    return {
        "num_moe_experts": architecture.num_experts,
        "moe_router_topk": architecture.moe_router_topk,
        "moe_ffn_hidden_size": architecture.moe_ffn_hidden_size,
        "moe_layer_freq": [int(architecture.has_experts(layer)) for layer in range(architecture.num_layers)],
        # Weights that sum up to one: softmax over the chosen experts instead of over all.
        "moe_router_pre_softmax": not architecture.norm_topk_prob,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "aux_loss" if options.aux_loss_coeff else "none",
        "moe_aux_loss_coeff": options.aux_loss_coeff,
        "expert_model_parallel_size": groups.layout.expert,
        "expert_tensor_parallel_size": groups.layout.tensor_of_experts,
    }


def _pipeline_layout(architecture: Architecture, groups: Groups) -> list[list[str]] | None:
    """Who holds what, in Megatron's words: a list for each stage, in the order in which a token meets them."""
    if groups.layout.pipeline == 1:
        return None
    stages = [["decoder"] * len(layers) for layers in groups.layout.stage_layers(architecture.num_layers)]
    stages[0].insert(0, "embedding")
    stages[-1].append("loss")
    return stages
