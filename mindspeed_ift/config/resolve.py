"""Which architecture is meant: preset, Hugging Face folder and spelled-out flags brought together."""

from __future__ import annotations

import dataclasses

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.tuning import ModelFlags

_NUMBERS = {field.name for field in dataclasses.fields(Architecture)}
_REQUIRED = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")
# These may differ from the described model without changing what it computes: scripts give the sequence length as
# --max-position-embeddings, and a deviation for weights that are then loaded.
_FREE = ("max_position_embeddings", "init_method_std", "router_aux_loss_coef")


def resolve_architecture(
    flags: ModelFlags, loaded: dict[str, Architecture], tokenizer_vocab: int, noop_layers: int = 0
) -> tuple[Architecture, str]:
    """The architecture that the flags describe, and where it came from.

    Args:
        flags: ``--preset``, ``--hf-cfg-dir`` and the spelled-out sizes.
        loaded: what the checkpoint or folder of ``--load`` says, under its name in messages; may be empty.
        tokenizer_vocab: ids of the tokenizer, the vocabulary of a model that is spelled out without one.
        noop_layers: how many of --num-layers do nothing; the architecture is without them.

    Raises:
        UserError: nothing given, too little given, two sources that differ, or sizes that cannot be a model.
    """
    sources = dict(loaded)
    if flags.hf_cfg_dir is not None:
        sources[f"--hf-cfg-dir {flags.hf_cfg_dir}"] = Architecture.from_hugging_face(flags.hf_cfg_dir)
    if flags.preset is not None:
        sources[f"--preset {flags.preset}"] = Architecture.from_preset(flags.preset)
    spelled = {name: value for name, value in vars(flags).items() if name in _NUMBERS and value is not None}
    if "num_layers" in spelled:
        spelled["num_layers"] -= noop_layers
    if flags.untie_embeddings_and_output_weights is not None:
        spelled["tied"] = not flags.untie_embeddings_and_output_weights
    if not sources:
        return _spelled_out(spelled, flags, tokenizer_vocab), "flags"
    (name, architecture), *others = sources.items()
    if architecture.add_qkv_bias:
        raise UserError(f"{name} is a Qwen2.5, which is converted and asked, but not trained here; give a Qwen3")
    for other_name, other in others:
        _refuse_difference(name, architecture, other_name, dataclasses.asdict(other))
    _refuse_difference(name, architecture, "the flags", spelled)
    if not loaded and "init_method_std" in spelled:  # fresh weights
        architecture = dataclasses.replace(architecture, init_method_std=spelled["init_method_std"])
    return architecture, name


def _spelled_out(spelled: dict, flags: ModelFlags, tokenizer_vocab: int) -> Architecture:
    required = _REQUIRED + (("moe_router_topk", "moe_ffn_hidden_size") if "num_experts" in spelled else ())
    missing = [f"--{field.replace('_', '-')}" for field in required if field not in spelled]
    if missing:
        raise UserError(
            f"the architecture is not known: give --preset, --hf-cfg-dir, or the missing {' '.join(missing)}"
        )
    heads, width = spelled["num_attention_heads"], spelled["hidden_size"]
    spelled.setdefault("num_query_groups", heads)
    if "kv_channels" not in spelled:
        if heads < 1 or width % heads:
            raise UserError(f"--num-attention-heads {heads} does not divide --hidden-size {width}; give --kv-channels")
        spelled["kv_channels"] = width // heads
    spelled.setdefault("vocab_size", flags.padded_vocab_size or tokenizer_vocab)
    spelled.setdefault("qk_layernorm", True)
    spelled.setdefault("tied", True)
    try:
        return Architecture(**spelled)
    except UserError as error:
        raise UserError(f"the flags do not describe a model: {error}") from None


def _refuse_difference(name: str, architecture: Architecture, other_name: str, other: dict) -> None:
    for field, value in other.items():
        ours = getattr(architecture, field)
        if field not in _FREE and value != ours:
            raise UserError(f"{field} is {ours} by {name}, {value} by {other_name}; leave one of them out")
