"""The same as ``mindspeed-ift plan``."""

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.plan import main

if __name__ == "__main__":
    run(main)
