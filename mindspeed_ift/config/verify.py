"""Flags of the commands that check what lies on the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindspeed_ift.config.errors import UserError


@dataclass(frozen=True)
class VerifyDatasetConfig:
    """Options of ``verify-dataset``."""

    data_path: str = ""
    """Prefix of the dataset: the --output-prefix of preprocess_data.py. Can be given as first word, without the flag."""

    tokenizer_name_or_path: str = ""
    """Tokenizer whose vocabulary the ids must belong to; the manifest's vocabulary unless given."""

    pack_index: Path | None = None
    """File of repack_dataset.py to be checked too: each sample once, no row too full, written for this dataset."""

    def check(self) -> None:
        """Refuse a command without a dataset.

        Raises:
            UserError: With the remedy.
        """
        if not self.data_path.strip():
            raise UserError("--data-path is missing; give the --output-prefix of preprocess_data.py")


@dataclass(frozen=True)
class CheckpointConfig:
    """Options of ``verify-checkpoint`` and ``show-checkpoint``."""

    load: Path | None = None
    """--save folder of a run (its newest checkpoint), an iter_ folder, or a Hugging Face folder. Can be given as first word,
    without the flag."""

    def check(self) -> None:
        """Refuse a command without a folder.

        Raises:
            UserError: With the remedy.
        """
        if self.load is None:
            raise UserError("--load is missing; give the --save folder of a run or a Hugging Face folder")
