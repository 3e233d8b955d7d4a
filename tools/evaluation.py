"""MindSpeed-LLM's name for ``mindspeed-ift evaluate``."""

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.evaluate import main

if __name__ == "__main__":
    run(main)
