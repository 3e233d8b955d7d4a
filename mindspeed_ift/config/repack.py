"""What is asked of packing a dataset anew: which one, rows of which length, by which rules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mindspeed_ift.config.data import PackingAlgorithm, check_multiple
from mindspeed_ift.config.errors import UserError


@dataclass(frozen=True)
class RepackConfig:
    """Options of ``repack_dataset.py``."""

    data_path: str = ""
    """Dataset of one sample a document: the --output-prefix of preprocess_data.py, without --pack."""

    seq_length: int = 4096
    """Tokens of a row, pads included."""

    packing_algorithm: PackingAlgorithm = "greedy-knapsack"
    """Which samples share a row: greedy-knapsack, best-fit or balanced (rows shuffled by --seed) or sequential; see
    preprocess_data.py."""

    max_segments: int = 1024
    """Most segments of a row, its pads being one: more is more than attention on the device can take."""

    pad_to_multiple_of: int = 1
    """Each sample takes a multiple of this many tokens, pads of its own at its end."""

    overlong: Literal["truncate", "drop", "error"] = "truncate"
    """Samples that fit no row: cut as preprocess_data.py --neat-pack cuts them, left out, or refused."""

    seed: int = 1234
    """Of the order of best-fit's and balanced rows."""

    output: Path | None = None
    """Where the index goes; default: beside the dataset, PREFIX.pack_LENGTH_FINGERPRINT.npz."""

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UserError: With the remedy.
        """
        if not self.data_path.strip():
            raise UserError("--data-path is missing: give the --output-prefix of preprocess_data.py")
        for flag, value, least in (
            ("--seq-length", self.seq_length, 2),
            ("--max-segments", self.max_segments, 2),
            ("--pad-to-multiple-of", self.pad_to_multiple_of, 1),
            ("--seed", self.seed, 0),
        ):
            if value < least:
                raise UserError(f"{flag} {value} is too small; give at least {least}")
        check_multiple(self.seq_length, self.pad_to_multiple_of)
