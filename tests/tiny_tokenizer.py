"""A byte-level tokenizer folder made on the fly, with Qwen's special tokens, for tests without the real vocabulary."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from mindspeed_ift.data.qwen3_tokenizer import ADDED_TOKENS, build_backend, write_folder

_TEXT = [
    "the user and the assistant speak about the answer to the question",
    "system user assistant tool think",
    "你好，世界。你好，我是助手。",
    "one two three four five six seven eight nine ten",
]
_SIZE = 400


def make_tiny_tokenizer(folder: str | Path) -> Path:
    """Write tokenizer.json and tokenizer_config.json of fewer than 600 tokens; encodes any text."""
    import json

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=_SIZE, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    trained.train_from_iterator(_TEXT, trainer)
    model = json.loads(trained.to_str())["model"]
    backend = build_backend(model["vocab"], [tuple(pair) for pair in model["merges"]], ADDED_TOKENS)
    write_folder(Path(folder), backend, ADDED_TOKENS)
    return Path(folder)
