"""Megatron-style name for ``mindspeed-ift show-checkpoint``."""

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.show_checkpoint import main

if __name__ == "__main__":
    run(main)
