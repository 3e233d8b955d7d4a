"""Architecture: the numbers that say what model it is, from a Hugging Face config.json or a preset."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mindspeed_ift.config.errors import UserError

_PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Architecture:
    """A dense Qwen3.

    Attributes:
        num_layers: transformer layers.
        hidden_size: width of the residual stream.
        ffn_hidden_size: width of the feed-forward block.
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

    @classmethod
    def from_hugging_face(cls, folder: Path) -> Architecture:
        """Read ``config.json`` of a Hugging Face folder.

        Raises:
            UserError: no such file, not JSON, or another architecture than Qwen3ForCausalLM.
        """
        path = Path(folder) / "config.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise UserError(f"{path} is missing: give the folder of a Hugging Face model") from None
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON ({error})") from None
        kinds = content.get("architectures") or [content.get("model_type")]
        if kinds[0] not in ("Qwen3ForCausalLM", "qwen3"):
            raise UserError(f"{path}: architecture {kinds[0]} is not supported; a Qwen3ForCausalLM is needed")
        try:
            return cls._from_config(content)
        except KeyError as error:
            raise UserError(f"{path}: the key {error.args[0]} is missing") from None

    @classmethod
    def _from_config(cls, content: dict[str, Any]) -> Architecture:
        heads = content["num_attention_heads"]
        rope = content.get("rope_parameters") or {}
        return cls(
            num_layers=content["num_hidden_layers"],
            hidden_size=content["hidden_size"],
            ffn_hidden_size=content["intermediate_size"],
            num_attention_heads=heads,
            num_query_groups=content["num_key_value_heads"],
            kv_channels=content.get("head_dim") or content["hidden_size"] // heads,
            vocab_size=content["vocab_size"],
            max_position_embeddings=content.get("max_position_embeddings", 40960),
            rotary_base=float(content.get("rope_theta") or rope.get("rope_theta") or 1e6),
            norm_epsilon=content.get("rms_norm_eps", 1e-6),
            add_qkv_bias=bool(content.get("attention_bias", False)),
            tied=bool(content.get("tie_word_embeddings", False)),
            init_method_std=content.get("initializer_range", 0.02),
        )

    @classmethod
    def from_preset(cls, name: str) -> Architecture:
        """Read a shipped preset, such as ``qwen3-8b``.

        Raises:
            UserError: no preset of that name.
        """
        path = _PRESETS / f"{name.lower()}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in _PRESETS.glob("*.yaml")))
            raise UserError(f"--preset {name} is unknown; one of: {known}")
        return cls(**yaml.safe_load(path.read_text(encoding="utf-8")))

    def to_hugging_face(self, dtype: str = "bfloat16") -> dict[str, Any]:
        """The ``config.json`` of a Qwen3ForCausalLM with these numbers."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": self.add_qkv_bias,
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
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }
