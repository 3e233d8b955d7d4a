"""Flags of ``evaluation.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.inference import GenerateConfig

METRICS = ("exact_match", "rouge_l", "bleu", "chrf")


@dataclass(frozen=True)
class EvaluateConfig:
    """Which model is measured on what."""

    load: Path | None = None
    """Hugging Face folder, or the --save folder of a run (its latest checkpoint)."""
    baseline: Path | None = None
    """Another of these to compare with: the model before tuning, say."""
    input: tuple[str, ...] = field(default=(), metadata={"repeatable": True})
    """Held-out records, as for preprocess: the last answer of each is what the model should say."""
    handler_name: str = "auto"
    """How records are read, as for preprocess."""
    map_keys: str = ""
    """Columns, as JSON, as for preprocess."""
    max_samples: int | None = None
    """Only the first so many records."""
    metrics: tuple[Literal["exact_match", "rouge_l", "bleu", "chrf"], ...] = ()
    """Compare written answers with those of the records; default: the loss only, no answer is written."""
    tokenizer_name_or_path: str | None = None
    """Tokenizer folder; default: the one the checkpoint names."""
    prompt_type: str | None = None
    """Template; default: the one the checkpoint was trained with, else qwen3."""
    prompt_type_path: str | None = None
    """File of templates; default: the one of the checkpoint's template."""
    enable_thinking: Literal["true", "false", "none"] | None = None
    """Thinking mode; default: the one the checkpoint was trained with, else none."""
    seq_length: int = 4096
    """Tokens of a row: records share rows for speed, which changes no loss. Longer records have a row of their own."""
    max_new_tokens: int = 256
    """Longest written answer in tokens."""
    micro_batch_size: int = 8
    """Answers written at once."""
    output: Path | None = None
    """File for all figures and answers (JSON)."""
    html: Path | None = None
    """Page with the figures, and the answers side by side."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""

    def check(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            UserError: with the remedy.
        """
        if self.load is None:
            raise UserError("--load is missing: a Hugging Face folder, or the --save folder of a run")
        if not "".join(self.input).strip():
            raise UserError("--input is missing: held-out records")
        if self.html is not None and not self.metrics:
            raise UserError("--html shows written answers; give --metrics too, such as exact_match rouge_l")
        for flag, value in (
            ("--max-samples", 1 if self.max_samples is None else self.max_samples),
            ("--seq-length", self.seq_length),
            ("--max-new-tokens", self.max_new_tokens),
            ("--micro-batch-size", self.micro_batch_size),
        ):
            if value < 1:
                raise UserError(f"{flag} {value} must be at least 1")

    def preparation(self) -> PreprocessConfig:
        """The records as options of ``preprocess``."""
        return PreprocessConfig(input=self.input, handler_name=self.handler_name, map_keys=self.map_keys)

    def asking(self, load: Path) -> GenerateConfig:
        """How the model of ``load`` is asked, as options of ``generate``."""
        return GenerateConfig(
            load=load,
            tokenizer_name_or_path=self.tokenizer_name_or_path,
            prompt_type=self.prompt_type,
            prompt_type_path=self.prompt_type_path,
            enable_thinking=self.enable_thinking,
            max_new_tokens=self.max_new_tokens,
            micro_batch_size=self.micro_batch_size,
        )
