"""The same as ``mindspeed-ift verify-packing``."""

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.verify_packing import main

if __name__ == "__main__":
    run(main)
