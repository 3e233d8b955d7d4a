"""Flags of ``evaluation.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.inference import GenerateConfig
from mindspeed_ift.config.layout import Layout, LayoutFlags, layout_of, world_size

FRESH = Path("fresh")


@dataclass(frozen=True)
class EvaluateConfig:
    """Which model is measured on what."""

    load: Path | None = None
    """Hugging Face folder, or the --save folder of a run (its latest checkpoint)."""
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
    tensor_model_parallel_size: int = 1
    """Devices that share each weight matrix; start as many processes with torchrun, or a multiple: what is left of them
    shares the records."""
    pipeline_model_parallel_size: int = 1
    """Devices in a row that each hold some layers."""
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
        has_records = bool("".join(self.input).strip())
        if not has_records and not self.tasks:
            raise UserError("--input is missing: held-out records; or give --tasks, benchmarks")
        if self.metrics and not has_records:
            raise UserError("--metrics is about the answers to records; give --input, held-out records")
        if self.html is not None and has_records and not self.metrics:
            raise UserError("--html shows written answers; give --metrics too, such as exact_match rouge_l")
        self._check_tasks()
        for flag, value in (
            ("--max-samples", 1 if self.max_samples is None else self.max_samples),
            ("--seq-length", self.seq_length),
            ("--max-new-tokens", self.max_new_tokens),
            ("--micro-batch-size", self.micro_batch_size),
            ("--tensor-model-parallel-size", self.tensor_model_parallel_size),
            ("--pipeline-model-parallel-size", self.pipeline_model_parallel_size),
        ):
            if value < 1:
                raise UserError(f"{flag} {value} must be at least 1")

    def _check_tasks(self) -> None:
        if not self.tasks and (self.include_path or self.num_fewshot is not None or self.apply_chat_template):
            raise UserError("--include-path, --num-fewshot and --apply-chat-template are for --tasks, which is missing")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise UserError(f"--num-fewshot {self.num_fewshot} must not be negative")

    def layout(self) -> Layout:
        """Who holds what of the processes that were started.

        Raises:
            UserError: the sizes do not divide them.
        """
        sizes = LayoutFlags(self.tensor_model_parallel_size, self.pipeline_model_parallel_size)
        return layout_of(sizes, world_size())

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
