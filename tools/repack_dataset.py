"""The script for ``mindspeed-ift repack-dataset``, beside those of MindSpeed-LLM."""

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.repack_dataset import main

if __name__ == "__main__":
    run(main)
