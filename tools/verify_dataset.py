"""Another name for ``mindspeed-ift verify-dataset``."""

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.verify_dataset import main

if __name__ == "__main__":
    run(main)
