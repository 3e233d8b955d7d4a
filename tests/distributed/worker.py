"""Runs several training command lines one after another in one torchrun: ``worker.py FILE`` holds a list of them."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path


def main() -> None:
    """Tune once for each command line of the JSON file."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    from mindspeed_ift.cli.tune import main as tune

    for argv in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        tune(argv)


if __name__ == "__main__":
    main()
