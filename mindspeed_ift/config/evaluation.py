"""Flags of ``evaluation.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mindspeed_ift.config.asking import AskedModel
from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import refuse_less

FRESH = Path("fresh")


@dataclass(frozen=True)
class EvaluateConfig(AskedModel):
    """Which model is measured on what."""

    baseline: Path | None = None
    """Another of these to compare with: the model before tuning, say. Or "fresh": the same model with fresh weights."""
    input: tuple[str, ...] = field(default=(), metadata={"repeatable": True})
    """Held-out records, as for preprocess: the last answer of each is what the model should say."""
    handler_name: str = "auto"
    """How records are read, as for preprocess."""
    map_keys: str = ""
    """Columns, as JSON, as for preprocess."""
    max_samples: int | None = None
    """Only the first so many records, and questions of each of --tasks."""
    metrics: tuple[Literal["exact_match", "rouge_l", "bleu", "chrf"], ...] = ()
    """Compare written answers with those of the records; default: the loss only, no answer is written."""
    tasks: tuple[str, ...] = ()
    """Benchmarks of lm-evaluation-harness: its names (arc_easy, mmlu), YAML files in its format, or groups of them."""
    include_path: tuple[Path, ...] = ()
    """Folders with further YAML files of --tasks."""
    num_fewshot: int | None = None
    """Examples before each question of --tasks; default: what the task says."""
    apply_chat_template: bool = False
    """Ask --tasks in the template, as a user would, and not as plain text."""
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
        super().check()
        has_records = bool("".join(self.input).strip())
        if not has_records and not self.tasks:
            raise UserError("--input is missing: held-out records; or give --tasks, benchmarks")
        if self.metrics and not has_records:
            raise UserError("--metrics is about the answers to records; give --input, held-out records")
        if self.html is not None and has_records and not self.metrics:
            raise UserError("--html shows written answers; give --metrics too, such as exact_match rouge_l")
        self._check_tasks()
        refuse_less(self, 1, "max_samples", "seq_length", "max_new_tokens", "micro_batch_size")

    def _check_tasks(self) -> None:
        if not self.tasks and (self.include_path or self.num_fewshot is not None or self.apply_chat_template):
            raise UserError("--include-path, --num-fewshot and --apply-chat-template are for --tasks, which is missing")
        refuse_less(self, 0, "num_fewshot")

    def preparation(self) -> PreprocessConfig:
        """The records as options of ``preprocess``."""
        return PreprocessConfig(input=self.input, handler_name=self.handler_name, map_keys=self.map_keys)
