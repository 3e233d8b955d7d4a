"""One rank of ``ci/smoke.py``: several trainings one after another in one world, since starting takes longer than they do.

``torchrun smoke_worker.py FILE``: FILE holds a list of [name, flags of posttrain_gpt.py]; rank 0 adds ``begun NAME`` and
``done NAME`` to FILE.account, the first rank to fail ``failed NAME: why``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Train as each line says; the first that fails ends this rank, so that all are started anew for the others."""
    lines = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import torch.distributed as dist

    import mindspeed_ift.mcore  # noqa: F401 - prepares the device, also for the groups below
    from mindspeed_ift.cli.tune import main as tune
    from mindspeed_ift.devices.device import current

    dist.init_process_group(current().backend)
    for name, flags in lines:
        if dist.get_rank() == 0:
            say(f"begun {name}")
        try:
            tune(flags)
        except Exception as error:  # noqa: BLE001 - of whatever kind: it is what the table will tell
            say(f"failed {name}: {type(error).__name__}: {' '.join(str(error).split())}")
            sys.stdout.flush()
            os._exit(1)  # peers may be gone, and process groups without them hang when they are taken apart
        if dist.get_rank() == 0:
            say(f"done {name}")
    dist.destroy_process_group()


def say(line: str) -> None:
    """Add a line to the account."""
    with open(f"{sys.argv[1]}.account", "a", encoding="utf-8") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
