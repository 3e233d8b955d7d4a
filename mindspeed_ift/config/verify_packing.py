"""Flags of ``verify-packing``: those of a training run, so that its line can be pasted, and how much is checked."""

from __future__ import annotations

from dataclasses import dataclass, field

from mindspeed_ift.config.flags import refuse_less
from mindspeed_ift.config.tuning import TuneConfig


@dataclass(frozen=True)
class VerifyPackingFlags:
    """How much of the data is checked."""

    verify_rows: int = 2
    """Packed rows that are checked: the first of the dataset that hold two samples or more."""
    verify_tokens: int = 1024
    """Most tokens of a row that are computed; a longer row has its samples cut to an equal share of them."""


@dataclass(frozen=True)
class VerifyPackingConfig(TuneConfig):
    """The command line of a training run, whose packing is checked instead."""

    verify: VerifyPackingFlags = field(default_factory=VerifyPackingFlags)

    def check(self) -> None:
        """Refuse counts that leave nothing to check.

        Raises:
            UserError: naming the flag.
        """
        refuse_less(self.verify, 1, "verify_rows")
        refuse_less(self.verify, 64, "verify_tokens")
