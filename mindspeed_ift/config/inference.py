"""Flags of ``inference.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mindspeed_ift.config.asking import AskedModel
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import refuse_less


@dataclass(frozen=True)
class GenerateConfig(AskedModel):
    """Who answers what, and how."""

    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A question; may be given several times."""
    input: Path | None = None
    """File of questions: jsonl with "prompt" and perhaps "system"."""
    output: Path | None = None
    """File for the answers: jsonl with "prompt" and "answer"."""
    system: str = ""
    """System prompt; default: the template's."""
    max_new_tokens: int = 128
    """Longest answer in tokens."""
    temperature: float = 0.0
    """0 always takes the likeliest token."""
    top_k: int = 0
    """Draw among this many likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that hold this share."""
    seed: int = 1234
    """Seed of the draws."""
    micro_batch_size: int = 8
    """Prompts answered at once."""
    repetition_penalty: float = 1.0
    """Over 1 makes tokens that were said already less likely, as in Hugging Face's generate."""
    stream: bool | None = None
    """Print answers as they are written, one after the other; default: of a single question on a terminal, and in chat."""
    chat: bool = False
    """Talk: each line of the standard input is a question, earlier ones and their answers are remembered until /new."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""

    def check(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            UserError: with the remedy.
        """
        super().check()
        refuse_less(self, 1, "max_new_tokens", "micro_batch_size")
        refuse_less(self, 0, "temperature", "top_k", "seed")
        if self.repetition_penalty <= 0:
            raise UserError(f"--repetition-penalty {self.repetition_penalty} must be over 0")
        if self.chat and (self.prompt or self.input is not None or self.output is not None):
            raise UserError("--chat asks on the terminal; leave out --prompt, --input and --output")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p {self.top_p} must be over 0 and at most 1")
