"""Flags of ``inference.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mindspeed_ift.config.errors import UserError


@dataclass(frozen=True)
class GenerateConfig:
    """Who answers what, and how."""

    load: Path | None = None
    """Hugging Face folder, or the --save folder of a run (its latest checkpoint)."""
    tokenizer_name_or_path: str | None = None
    """Tokenizer folder; default: the one the checkpoint names."""
    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A question; may be given several times."""
    input: Path | None = None
    """File of questions: jsonl with "prompt" and perhaps "system"."""
    output: Path | None = None
    """File for the answers: jsonl with "prompt" and "answer"."""
    system: str = ""
    """System prompt; default: the template's."""
    prompt_type: str | None = None
    """Template; default: the one the checkpoint was trained with, else qwen3."""
    prompt_type_path: str | None = None
    """File of templates; default: the one of the checkpoint's template."""
    enable_thinking: Literal["true", "false", "none"] | None = None
    """Thinking mode; default: the one the checkpoint was trained with, else none."""
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
    tensor_model_parallel_size: int = 1
    """Devices that share each weight matrix; start as many processes with torchrun."""
    pipeline_model_parallel_size: int = 1
    """Devices in a row that each hold some layers."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""

    def check(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            UserError: with the remedy.
        """
        if self.load is None:
            raise UserError("--load is missing: a Hugging Face folder, or the --save folder of a run")
        for flag, value in (
            ("--max-new-tokens", self.max_new_tokens),
            ("--micro-batch-size", self.micro_batch_size),
            ("--tensor-model-parallel-size", self.tensor_model_parallel_size),
            ("--pipeline-model-parallel-size", self.pipeline_model_parallel_size),
        ):
            if value < 1:
                raise UserError(f"{flag} {value} must be at least 1")
        for flag, value in (("--temperature", self.temperature), ("--top-k", self.top_k), ("--seed", self.seed)):
            if value < 0:
                raise UserError(f"{flag} {value} must not be negative")
        if self.repetition_penalty <= 0:
            raise UserError(f"--repetition-penalty {self.repetition_penalty} must be over 0")
        if self.chat and (self.prompt or self.input is not None or self.output is not None):
            raise UserError("--chat asks on the terminal; leave out --prompt, --input and --output")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p {self.top_p} must be over 0 and at most 1")
