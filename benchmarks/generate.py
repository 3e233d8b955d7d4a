"""How fast answers are written, beside transformers' ``generate`` on the same weights, prompts and threads.

``python benchmarks/generate.py`` takes some minutes and 2 GiB of memory. Greedy, fp32, one process, ``--threads`` threads;
prompts of different lengths, which transformers pads on the left; the two sides take turns, and each is given its fastest
turn. "ratio" is ours over theirs, of tokens a second. Where the tokens differ, it stops.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.utils.logging import disable_progress_bar

from mindspeed_ift.inference.decoder import Decoder
from mindspeed_ift.inference.generate import generate
from mindspeed_ift.inference.load import load
from mindspeed_ift.inference.sampling import Sampling
from mindspeed_ift.parallel import groups as process_groups

QUICKSTART = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 151_936,
}
LARGER = {
    "hidden_size": 512,
    "intermediate_size": 1_536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}
MODELS: dict[str, dict[str, Any]] = {
    "quickstart": QUICKSTART,
    "quickstart, 1,000 words": {**QUICKSTART, "vocab_size": 1_000},
    "experts": {**QUICKSTART, **EXPERTS},
    "larger": {**QUICKSTART, **LARGER},
}
"""Name -> what its config.json says; "1,000 words" leaves little to do but the layers' calls."""


def main() -> None:
    """Print a line of JSON for each model and size of batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    disable_progress_bar()
    for name in chosen.models:
        with tempfile.TemporaryDirectory() as place:
            theirs = make_model(Path(place), MODELS[name])
            loaded = load(Path(place))
        ours = Decoder(loaded.model, loaded.groups)
        for batch in chosen.batches:
            figures = compare(ours, theirs, prompts_of(batch, MODELS[name]["vocab_size"]), chosen)
            print(json.dumps({"model": name, "batch": batch, "threads": chosen.threads, **figures}), flush=True)
        process_groups.stop(loaded.groups)


def make_model(folder: Path, sizes: dict[str, Any]) -> PreTrainedModel:
    """A random model, written to the folder and read from it again."""
    torch.manual_seed(1)
    experts = "num_experts" in sizes
    options = {"max_position_embeddings": 2048, "rope_theta": 1e6, "tie_word_embeddings": False, **sizes}
    config = (Qwen3MoeConfig if experts else Qwen3Config)(initializer_range=0.1, **options)
    model = (Qwen3MoeForCausalLM if experts else Qwen3ForCausalLM)(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "mlp.gate." in key:
                parameter.normal_()  # transformers leaves it at zero: every expert alike
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).float().eval()


def prompts_of(batch: int, vocab_size: int) -> list[list[int]]:
    """Prompts of 33 tokens and more, no two of one length."""
    chance = torch.Generator().manual_seed(2)
    return [torch.randint(vocab_size, (33 + 5 * row,), generator=chance).tolist() for row in range(batch)]


def compare(
    ours: Decoder, theirs: PreTrainedModel, prompts: list[list[int]], chosen: argparse.Namespace
) -> dict[str, float]:
    """Tokens a second of both, by the clock and by the processor's time."""
    ways = {
        "ours": lambda: generate(ours, prompts, [], Sampling(max_new_tokens=chosen.new_tokens)),
        "transformers": lambda: reference(theirs, prompts, chosen.new_tokens),
    }
    answers = [way() for way in ways.values()]
    if answers[0] != answers[1]:
        raise SystemExit("the two answers differ: nothing to compare")
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(chosen.turns):
        for name, way in ways.items():
            seconds[name].append(timed(way))
    figures: dict[str, float] = {}
    for number, clock in enumerate(("wall", "processor")):
        speed = {
            name: len(prompts) * chosen.new_tokens / min(turn[number] for turn in turns)
            for name, turns in seconds.items()
        }
        figures |= {f"{name}, tokens/s {clock}": round(value) for name, value in speed.items()}
        figures[f"ratio {clock}"] = round(speed["ours"] / speed["transformers"], 2)
    return figures


def reference(model: PreTrainedModel, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """What transformers writes, of a batch padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    whole = model.generate(
        ids, attention_mask=seen, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return whole[:, longest:].tolist()


def timed(way: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    main()
