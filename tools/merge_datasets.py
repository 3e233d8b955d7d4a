"""The command ``mindspeed-ift merge-datasets``."""

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.merge_datasets import main

if __name__ == "__main__":
    run(main)
