"""Asks a model whose parts lie on the ranks of a torchrun, command line after command line: ``answer_worker.py FILE``."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Run ``generate`` once for each command line of the JSON file, all in one world."""
    import torch.distributed as dist

    from mindspeed_ift.cli.generate import main as generate
    from mindspeed_ift.mcore import parallel_state

    dist.init_process_group("gloo")
    for argv in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        generate(argv)
        parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
