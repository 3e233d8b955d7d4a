"""Runs several training command lines one after another in one torchrun: ``worker.py FILE`` holds a list of them."""

from __future__ import annotations

import json
import sys
import warnings
from datetime import timedelta
from pathlib import Path


def main() -> None:
    """Tune once for each command line of the JSON file."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    # One world for all runs: each builds its own groups in it.
    torch.distributed.init_process_group("gloo", timeout=timedelta(minutes=3))
    from mindspeed_ift.cli.tune import main as tune

    for argv in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        tune(argv)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
