"""One of the local ranks between which the doctor tries a collective.

``python -m mindspeed_ift.devices.diagnosis.collective ACCOUNT`` with torchrun's environment variables; rank 0 alone writes
what it finds into that file.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from mindspeed_ift.devices.diagnosis.finding import Account, Finding

NAME = "collective"
_LIMIT = timedelta(seconds=60)


def all_reduce() -> list[Finding]:
    """Join the other ranks, and sum up their numbers over the device's backend."""
    import torch
    import torch.distributed as dist

    from mindspeed_ift.devices.device import current

    device = current()
    if device.asynchronous:
        torch.get_device_module(device.kind).set_device(device.index)
    start = time.monotonic()
    dist.init_process_group(device.backend, timeout=_LIMIT)
    rank, size = dist.get_rank(), dist.get_world_size()
    numbers = torch.full((1024,), rank + 1.0, device=device.torch_device)
    dist.all_reduce(numbers)
    expected = size * (size + 1) / 2
    right = bool((numbers == expected).all())
    dist.destroy_process_group()
    told = f"all_reduce among {size} ranks over {device.backend} in {time.monotonic() - start:.1f} s"
    if right:
        return [Finding(NAME, "green", told)]
    return [
        Finding(NAME, "red", f"{told}: a wrong sum", f"the links between devices corrupt data; test them ({REMEDY})")
    ]


REMEDY = "NCCL_DEBUG=INFO, or the plog of CANN, says at which link; GLOO_SOCKET_IFNAME=lo keeps gloo on this machine"


def main(words: list[str]) -> None:
    """Take part; rank 0 tells."""
    if os.environ["RANK"] == "0":
        account = Account(Path(words[0]))
        account.step(NAME, all_reduce)
        account.end()
    else:
        all_reduce()


if __name__ == "__main__":
    main(sys.argv[1:])
