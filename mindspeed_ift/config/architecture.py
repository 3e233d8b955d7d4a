"""Architecture: the numbers that say what model it is, from a Hugging Face config.json or a preset."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from mindspeed_ift.config.errors import UserError

_PRESETS = Path(__file__).parent / "presets"
# Keys of config.json that change what the model computes -> the only values that are computed here.
_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "attention_dropout": (0, None),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
}

# What config.json calls a model -> its family.
_KINDS = {
    **{"Qwen3ForCausalLM": "qwen3", "Qwen3MoeForCausalLM": "qwen3_moe", "Qwen2ForCausalLM": "qwen2"},
    **{family: family for family in ("qwen3", "qwen3_moe", "qwen2")},
}

_MAY_BE_ZERO = ("num_experts", "moe_router_topk", "moe_ffn_hidden_size", "router_aux_loss_coef")


@dataclass(frozen=True)
class Architecture:
    """A Qwen3, dense or with a mixture of experts, or a Qwen2.5 (``add_qkv_bias``, no ``qk_layernorm``).

    Numbers that cannot be a model are refused with a `UserError`.

    Attributes:
        num_layers: transformer layers.
        hidden_size: width of the residual stream.
        ffn_hidden_size: width of the feed-forward block (of dense layers).
        num_attention_heads: query heads.
        num_query_groups: key and value heads.
        kv_channels: size of one head.
        vocab_size: rows of the Hugging Face embedding.
        max_position_embeddings: longest context the model is meant for.
        rotary_base: base of the rotary frequencies.
        norm_epsilon: epsilon of every RMSNorm.
        qk_layernorm: RMSNorm on every query and key head.
        add_qkv_bias: bias on the query, key and value projections.
        tied: embedding and output layer share their weights.
        init_method_std: standard deviation of fresh weights.
        num_experts: feed-forward blocks of a layer among which each token has some; 0: a dense model.
        moe_router_topk: experts of a token.
        moe_ffn_hidden_size: width of one expert.
        norm_topk_prob: the weights of a token's experts are made to sum up to one.
        dense_layers: zero-based numbers of the layers without experts, in a model that has some.
        router_aux_loss_coef: what the model's authors say of balancing; training takes --moe-aux-loss-coeff.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    vocab_size: int
    max_position_embeddings: int = 40960
    rotary_base: float = 1_000_000.0
    norm_epsilon: float = 1e-6
    qk_layernorm: bool = True
    add_qkv_bias: bool = False
    tied: bool = False
    init_method_std: float = 0.02
    num_experts: int = 0
    moe_router_topk: int = 0
    moe_ffn_hidden_size: int = 0
    norm_topk_prob: bool = True
    dense_layers: tuple[int, ...] = ()
    router_aux_loss_coef: float = 0.001

    def __post_init__(self) -> None:
        object.__setattr__(self, "dense_layers", tuple(self.dense_layers))  # JSON knows lists only
        for field in fields(self):
            value, kind = getattr(self, field.name), field.type
            if kind not in ("bool", "int", "float"):
                continue
            least = 0 if field.name in _MAY_BE_ZERO else 1
            if kind == "bool":
                valid = isinstance(value, bool)
            else:
                valid = isinstance(value, int | float if kind == "float" else int) and not isinstance(value, bool)
                valid = valid and math.isfinite(value)
                valid = valid and (value >= least if kind == "int" or not least else value > 0)
            if not valid:
                must = {
                    "bool": "true or false",
                    "int": f"a whole number of at least {least}",
                    "float": "a number over 0",
                }
                raise UserError(f"{field.name} {value!r} must be {must[str(kind)]}")
        self._check_experts()
        if self.num_attention_heads % self.num_query_groups:
            raise UserError(
                f"num_query_groups {self.num_query_groups} does not divide num_attention_heads {self.num_attention_heads}"
            )
        if self.kv_channels % 2:
            raise UserError(f"kv_channels {self.kv_channels} must be even: rotary positions turn pairs of channels")

    def _check_experts(self) -> None:
        sizes = (self.moe_router_topk, self.moe_ffn_hidden_size)
        if not self.num_experts:
            if any(sizes) or self.dense_layers:
                raise UserError("sizes of experts are given, but not num_experts: how many there are")
            return
        if not all(sizes):
            raise UserError(f"num_experts {self.num_experts} needs moe_router_topk and moe_ffn_hidden_size")
        if self.moe_router_topk > self.num_experts:
            raise UserError(f"moe_router_topk {self.moe_router_topk} is more than num_experts {self.num_experts}")
        if self.moe_router_topk == 1 and self.norm_topk_prob:
            raise UserError("moe_router_topk 1 with norm_topk_prob gives every expert the weight 1: nothing to learn")
        if not all(isinstance(one, int) and 0 <= one < self.num_layers for one in self.dense_layers):
            raise UserError(f"dense layers {list(self.dense_layers)} must be numbers of the {self.num_layers} layers")
        if len(set(self.dense_layers)) == self.num_layers:
            raise UserError("no layer has experts")

    def has_experts(self, layer: int) -> bool:
        """Whether the layer of that zero-based number has experts instead of one feed-forward block."""
        return self.num_experts > 0 and layer not in self.dense_layers

    def difference(self, other: Architecture) -> str:
        """The first number that is another one, as ``hidden_size 64, not 128``; empty if none is."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine != theirs:
                return f"{field.name} {mine}, not {theirs}"
        return ""

    @classmethod
    def from_hugging_face(cls, folder: Path) -> Architecture:
        """Read ``config.json`` of a Hugging Face folder.

        Raises:
            UserError: no such file, not JSON, another architecture than Qwen3, Qwen3-MoE and Qwen2.5, or one
                with something that is not computed here (scaled positions, sliding windows, biases, quantized weights).
        """
        path = Path(folder) / "config.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise UserError(f"{path} is missing: give the folder of a Hugging Face model") from None
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON ({error})") from None
        if not isinstance(content, dict):
            raise UserError(f"{path} is not the config.json of a model: a JSON object is needed")
        kinds = content.get("architectures") or [content.get("model_type")]
        kind = kinds[0] if isinstance(kinds, list) and len(kinds) == 1 else None
        if kind not in _KINDS:
            told = ", ".join(map(str, kinds)) if isinstance(kinds, list) else kinds
            raise UserError(
                f"{path}: architecture {told} is not supported; a Qwen3ForCausalLM, Qwen3MoeForCausalLM or"
                " Qwen2ForCausalLM is needed"
            )
        try:
            return cls._from_config(content, _KINDS[kind])
        except KeyError as error:
            raise UserError(f"{path}: the key {error.args[0]} is missing") from None
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def _from_config(cls, content: dict[str, Any], family: str) -> Architecture:
        for key, only in _ONLY.items():
            if content.get(key, only[0]) not in only:
                raise UserError(f"{key} {content[key]!r} is not supported; only {only[0]!r}")
        if set(content.get("layer_types") or []) - {"full_attention"}:
            raise UserError("layer_types other than full_attention are not supported")
        heads, groups = content["num_attention_heads"], content["num_key_value_heads"]
        return cls(
            num_layers=content["num_hidden_layers"],
            hidden_size=content["hidden_size"],
            ffn_hidden_size=content["intermediate_size"],
            num_attention_heads=heads,
            num_query_groups=heads if groups is None else groups,
            # The defaults of transformers' Qwen3Config and Qwen2Config.
            kv_channels=_head_size(content, None if family == "qwen2" else 128),
            qk_layernorm=family != "qwen2",
            add_qkv_bias=family == "qwen2",
            vocab_size=content["vocab_size"],
            max_position_embeddings=content.get("max_position_embeddings", 32768),
            rotary_base=_rotary_base(content),
            norm_epsilon=content.get("rms_norm_eps", 1e-6),
            tied=content.get("tie_word_embeddings", False),
            init_method_std=content.get("initializer_range", 0.02),
            **(_experts(content) if family == "qwen3_moe" else {}),
        )

    @classmethod
    def from_preset(cls, name: str) -> Architecture:
        """Read a shipped preset, such as ``qwen3-8b``.

        Raises:
            UserError: no preset of that name.
        """
        known = {path.stem: path for path in sorted(_PRESETS.glob("*.yaml"))}
        path = known.get(name.lower())
        if path is None:
            raise UserError(f"--preset {name} is unknown; one of: {', '.join(known)}")
        return cls(**yaml.safe_load(path.read_text(encoding="utf-8")))

    def to_hugging_face(self, dtype: str = "bfloat16") -> dict[str, Any]:
        """The ``config.json`` of a Qwen3ForCausalLM, Qwen3MoeForCausalLM or Qwen2ForCausalLM with these numbers."""
        family = "Qwen3Moe" if self.num_experts else "Qwen2" if self.add_qkv_bias else "Qwen3"
        experts = {
            "decoder_sparse_step": 1,
            "mlp_only_layers": list(self.dense_layers),
            "moe_intermediate_size": self.moe_ffn_hidden_size,
            "norm_topk_prob": self.norm_topk_prob,
            "num_experts": self.num_experts,
            "num_experts_per_tok": self.moe_router_topk,
            "router_aux_loss_coef": self.router_aux_loss_coef,
        }
        return {
            "architectures": [f"{family}ForCausalLM"],
            "model_type": family.lower().replace("moe", "_moe"),
            **(experts if self.num_experts else {}),
            **({"use_sliding_window": False} if self.add_qkv_bias else {"attention_bias": False}),
            "attention_dropout": 0.0,
            "head_dim": self.kv_channels,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.init_method_std,
            "intermediate_size": self.ffn_hidden_size,
            "max_position_embeddings": self.max_position_embeddings,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_query_groups,
            "rms_norm_eps": self.norm_epsilon,
            "rope_theta": self.rotary_base,
            "tie_word_embeddings": self.tied,
            "torch_dtype": dtype,
            # The first that knows Qwen3. Without it, transformers takes the folder's tokenizer for a faulty one of
            # Mistral's and says so at every load.
            "transformers_version": "4.51.0",
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }


def _experts(content: dict[str, Any]) -> dict[str, Any]:
    """Fields of a Qwen3MoeForCausalLM; what is missing has the default of transformers."""
    step, layers = content.get("decoder_sparse_step", 1), content["num_hidden_layers"]
    dense = content.get("mlp_only_layers") or []
    if not isinstance(step, int) or step < 1 or not isinstance(layers, int) or not isinstance(dense, list):
        raise UserError("decoder_sparse_step must be a whole number of at least 1, mlp_only_layers a list of numbers")
    return {
        # transformers 5 has another name for it
        "num_experts": content["num_experts"] if "num_experts" in content else content["num_local_experts"],
        "moe_router_topk": content.get("num_experts_per_tok", 8),
        "moe_ffn_hidden_size": content.get("moe_intermediate_size", 768),
        "norm_topk_prob": content.get("norm_topk_prob", False),
        "dense_layers": tuple(one for one in range(layers) if one in dense or (one + 1) % step),
        "router_aux_loss_coef": content.get("router_aux_loss_coef", 0.001),
    }


def _head_size(content: dict[str, Any], default: int | None) -> Any:
    size = content.get("head_dim", default)
    if size is not None:
        return size
    width, heads = content["hidden_size"], content["num_attention_heads"]
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads > 0 else None


def _rotary_base(content: dict[str, Any]) -> Any:
    """``rope_theta``: a key of its own until transformers 5, in ``rope_parameters`` since, which wins if both stand."""
    parts = [content.get(key) or {} for key in ("rope_parameters", "rope_scaling")]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError("rope_parameters and rope_scaling must be JSON objects")
    rope = {**parts[0], **parts[1]}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", None) or rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UserError(f"scaled positions (rope {kind}) are not supported; only rope_type default")
    base = rope["rope_theta"] if "rope_theta" in rope else content["rope_theta"]
    return float(base) if isinstance(base, int) and not isinstance(base, bool) else base
