"""MindSpeed-LLM's name for ``mindspeed-ift preprocess``."""

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.preprocess import main

if __name__ == "__main__":
    run(main)
