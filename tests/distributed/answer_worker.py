"""Asks models whose parts lie on the ranks of a world."""

from __future__ import annotations

from mindspeed_ift.cli.evaluate import main as evaluate
from mindspeed_ift.cli.generate import main as generate


def run_line(words: list[str]) -> None:
    """``generate`` or ``evaluate``, the first word, with the others."""
    {"generate": generate, "evaluate": evaluate}[words[0]](words[1:])
