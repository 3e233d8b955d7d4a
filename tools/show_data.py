"""The same as ``mindspeed-ift show-data``."""

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.show_data import main

if __name__ == "__main__":
    run(main)
