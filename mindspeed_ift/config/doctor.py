"""Options of the doctor: those of a training run, and how it answers."""

from __future__ import annotations

from dataclasses import dataclass

from mindspeed_ift.config.tuning import TuneConfig


@dataclass(frozen=True)
class DoctorConfig(TuneConfig):
    """Options of ``doctor``: the flags of a run make it look whether they, data and weights belong together."""

    json: bool = False
    """Print JSON, instead of lines to read."""
