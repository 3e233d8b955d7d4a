"""What does not go together about the bits of weights and activations, and the loss scale of fp16."""

from __future__ import annotations

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.tuning import OptimizerFlags, TuneConfig


def check_precision(config: TuneConfig, architecture: Architecture) -> None:
    """Refuse two precisions, and loss scales that cannot be.

    Raises:
        UserError: naming the flag and the remedy.
    """
    flags, default = config.optimizer, OptimizerFlags()
    if flags.fp16 and flags.bf16:
        raise UserError("--fp16 and --bf16 exclude each other; give one")
    # MindSpeed-LLM's lines give --initial-loss-scale with --bf16 too, where it changes nothing.
    for name in ("loss_scale", "min_loss_scale", "loss_scale_window", "hysteresis"):
        value, flag = getattr(flags, name), "--" + name.replace("_", "-")
        if value != getattr(default, name) and not flags.fp16:
            raise UserError(f"{flag} is about the loss scale of --fp16; give that, or leave it out")
        if value is not None and value <= 0:
            raise UserError(f"{flag} {value} must be over 0")
    if flags.fp16 and flags.initial_loss_scale < flags.min_loss_scale:
        raise UserError(
            f"--initial-loss-scale {flags.initial_loss_scale} is under --min-loss-scale {flags.min_loss_scale}"
        )
    if flags.fp16 and architecture.num_experts:
        raise UserError(
            "--fp16 does not train a mixture of experts, each of which has gradients of its own; give --bf16"
        )
