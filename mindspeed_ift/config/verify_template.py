"""Flags of ``verify-template``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError


@dataclass(frozen=True)
class VerifyTemplateConfig:
    """Which records, template and tokenizer are compared; spelled as for ``preprocess``."""

    input: tuple[str, ...] = field(default=(), metadata={"repeatable": True})
    """Records, as for preprocess."""
    tokenizer: str = ""
    """Folder of a Hugging Face tokenizer with a chat template: the one that will serve the model."""
    tokenizer_name_or_path: str = ""
    """Another name of --tokenizer."""
    trust_remote_code: bool = False
    """Run Python code that lies in the tokenizer's folder."""
    handler_name: str = "auto"
    """How records are read, as for preprocess."""
    map_keys: str = ""
    """Columns, as JSON, as for preprocess."""
    prompt_type: str = "qwen"
    """Template that training uses."""
    prompt_type_path: str = ""
    """File of templates to choose from instead."""
    enable_thinking: Literal["none", "true", "false"] = "none"
    """Empty thoughts in training, as for preprocess."""
    drop_thinking: bool = False
    """Training writes the answers before the user's last question without thoughts."""
    mask_history: bool = False
    """Training learns the last answer only, so only its prompt is compared."""
    max_samples: int = 1000
    """Compare only the first so many records."""
    examples: int = 3
    """How many kinds of difference to show token by token, one record each."""
    output: Path | None = None
    """File for the certificate (JSON)."""
    data_path: str | None = None
    """Dataset that was prepared with this template and tokenizer: its manifest gets this certificate, which may be of more
    records than the one that preprocess has put there."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""

    @property
    def tokenizer_folder(self) -> str:
        """The tokenizer, under whichever of its names it was given."""
        return self.tokenizer or self.tokenizer_name_or_path

    def check(self) -> None:
        """Refuse what cannot be compared.

        Raises:
            UserError: With the remedy.
        """
        for flag, value in (("--input", "".join(self.input)), ("--tokenizer", self.tokenizer_folder)):
            if not value.strip():
                raise UserError(f"{flag} is missing; give a path")
        if self.tokenizer and self.tokenizer_name_or_path not in ("", self.tokenizer):
            raise UserError("--tokenizer and --tokenizer-name-or-path name two folders; give one of them")
        for flag, number, least in (("--max-samples", self.max_samples, 1), ("--examples", self.examples, 0)):
            if number < least:
                raise UserError(f"{flag} {number} is too small; give at least {least}")

    def preparation(self) -> PreprocessConfig:
        """The same records and template as options of ``preprocess``."""
        return PreprocessConfig(
            input=self.input,
            tokenizer_name_or_path=self.tokenizer_folder,
            trust_remote_code=self.trust_remote_code,
            handler_name=self.handler_name,
            map_keys=self.map_keys,
            prompt_type=self.prompt_type,
            prompt_type_path=self.prompt_type_path,
            enable_thinking=self.enable_thinking,
            drop_thinking=self.drop_thinking,
            mask_history=self.mask_history,
        )
