"""MindSpeed-LLM's name for ``mindspeed-ift generate``."""

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.generate import main

if __name__ == "__main__":
    run(main)
