"""MindSpeed-LLM's name for ``mindspeed-ift convert``."""

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.convert import main

if __name__ == "__main__":
    run(main)
