"""Asks a model whose parts lie on the ranks of a world."""

from __future__ import annotations

from mindspeed_ift.cli.generate import main as generate


def run_line(words: list[str]) -> None:
    """``generate`` with these words."""
    generate(words)
