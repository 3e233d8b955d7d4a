"""Flags of ``plan``: those of a training run, the devices it is for, and what is known of data that are not there yet."""

from __future__ import annotations

from dataclasses import dataclass, field

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import refuse_less
from mindspeed_ift.config.tuning import TuneConfig


@dataclass(frozen=True)
class PlanFlags:
    """Devices and data."""

    num_devices: int | None = None
    """Devices of the run; default: the processes of this start, or as many as the layout's sizes multiply to."""
    devices_per_node: int = 8
    """Devices of one machine."""
    device_memory_gib: float = 64.0
    """Memory of one device."""
    device_name: str | None = None
    """Name of the device, whose peak is looked up: Ascend910B3, A100, H100, ..."""
    peak_tflops: float | None = None
    """Its dense bf16 peak, instead of the one that is looked up."""
    mfu: float = 0.4
    """Share of that peak which the given layout reaches."""
    sample_length: int | None = None
    """Mean tokens of a sample, where --data-path is not given; default: --seq-length."""
    learnt_share: float = 1.0
    """Share of the tokens that are learnt, where --data-path is not given."""
    best: int = 5
    """Layouts that are proposed; 0: none."""
    json: bool = False
    """Print JSON instead of tables."""


@dataclass(frozen=True)
class PlanConfig(TuneConfig):
    """The command line of a training run, which is reckoned instead."""

    plan: PlanFlags = field(default_factory=PlanFlags)

    def check(self) -> None:
        """Refuse numbers that are none of devices or data.

        Raises:
            UserError: naming the flag.
        """
        flags = self.plan
        refuse_less(flags, 1, "num_devices", "devices_per_node", "sample_length")
        for flag, number in (("--device-memory-gib", flags.device_memory_gib), ("--peak-tflops", flags.peak_tflops)):
            if number is not None and number <= 0:
                raise UserError(f"{flag} {number} must be over 0")
        for flag, share in (("--mfu", flags.mfu), ("--learnt-share", flags.learnt_share)):
            if not 0 < share <= 1:
                raise UserError(f"{flag} {share} must be over 0 and at most 1")
        refuse_less(flags, 0, "best")
        if flags.sample_length is not None and flags.sample_length > self.data.seq_length:
            raise UserError(f"--sample-length {flags.sample_length} is more than --seq-length {self.data.seq_length}")
