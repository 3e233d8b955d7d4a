"""Tiny models, datasets and runs for the tests that train."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from mindspeed_ift.cli.preprocess import main as preprocess
from tests.tiny_tokenizer import make_tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SEQ_LENGTH = 128
MODES = {
    "fixed": ["--seq-length", str(SEQ_LENGTH)],
    "dynamic": ["--seq-length", str(SEQ_LENGTH), "--no-pad-to-seq-lengths"],
    "packed": ["--seq-length", str(SEQ_LENGTH), "--reset-attention-mask", "--reset-position-ids"],
}


def make_hugging_face_model(
    folder: Path,
    *,
    tied: bool,
    vocab_size: int,
    layers: int = 2,
    experts: dict[str, Any] | None = None,
    dtype: Any = None,
) -> Path:
    """A tiny random Qwen3ForCausalLM with norms that are not all one, saved in fp32 if ``dtype`` says no other.

    With ``experts`` a Qwen3MoeForCausalLM: eight experts, two a token; what else its config.json shall say.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(7)
    sizes = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}
    config = (Qwen3Config if experts is None else Qwen3MoeConfig)(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        initializer_range=0.05,
        **({} if experts is None else {**sizes, **experts}),
    )
    model = (Qwen3ForCausalLM if experts is None else Qwen3MoeForCausalLM)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "mlp.gate." in name:  # transformers 5 leaves it at zero: every expert alike
                parameter.normal_(0, 0.5)
    model.to(dtype or torch.float32).save_pretrained(folder)
    return folder


def make_datasets(folder: Path) -> dict[str, Path]:
    """The same records as single samples and neat-packed: mode of training -> dataset prefix."""
    make_tiny_tokenizer(folder / "tokenizer")
    chance = random.Random(3)
    records = []
    for number in range(48):
        words = " ".join(chance.choice("add subtract please carefully quickly".split()) for _ in range(number % 9))
        records.append({"instruction": f"{words} {number} and {number + 3}", "output": f"It is {2 * number + 3}."})
    (folder / "records.jsonl").write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    common = ["--input", str(folder / "records.jsonl"), "--tokenizer-name-or-path", str(folder / "tokenizer")]
    common += ["--prompt-type", "qwen3", "--handler-name", "AlpacaStyleInstructionHandler"]
    preprocess([*common, "--output-prefix", str(folder / "single")])
    packing = ["--pack", "--neat-pack", "--seq-length", str(SEQ_LENGTH)]
    preprocess([*common, *packing, "--output-prefix", str(folder / "packed")])
    return {"fixed": folder / "single", "dynamic": folder / "single", "packed": folder / "packed"}


def records(folder: Path) -> list[dict[str, Any]]:
    """All of a run's metrics.jsonl that does not depend on the clock."""
    from mindspeed_ift.training.metrics import TIMINGS

    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMINGS} for line in lines]


def losses(folder: Path) -> list[float]:
    """Training losses of a run's metrics.jsonl, in order."""
    return of_steps(folder, "loss")


def gradient_norms(folder: Path) -> list[float]:
    """Gradient norms of a run's metrics.jsonl, before clipping, in order."""
    return of_steps(folder, "gradient_norm")


def of_steps(folder: Path, key: str) -> list[float]:
    """A figure of a run's metrics.jsonl, of the lines that have it, in order."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record[key] for record in map(json.loads, lines) if key in record]
