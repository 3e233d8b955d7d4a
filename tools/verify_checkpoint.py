"""Megatron-style name for ``mindspeed-ift verify-checkpoint``."""

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.verify_checkpoint import main

if __name__ == "__main__":
    run(main)
