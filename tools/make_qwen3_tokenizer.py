"""The same as ``mindspeed-ift make-tokenizer``."""

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.make_tokenizer import main

if __name__ == "__main__":
    run(main)
