"""MindSpeed-LLM's name for ``mindspeed-ift tune``; start it with torchrun."""

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.tune import main

if __name__ == "__main__":
    run(main)
