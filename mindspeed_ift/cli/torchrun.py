"""torchrun that ends as its processes end: ``python -m mindspeed_ift.cli.torchrun`` takes torchrun's words.

torchrun itself answers a failed process with a page of its own and exit code 1, whatever the process said and returned.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

from mindspeed_ift.cli.command import REPORT, run
from mindspeed_ift.config.errors import RunError


def main(argv: list[str]) -> int:
    """Start the processes; the exit code is that of the first that reported an error.

    Raises:
        RunError: a process was killed, so that it could not say why.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Processes say themselves why they end (see cli/command.py).
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    report = Path(tempfile.mkdtemp(prefix="mindspeed_ift_")) / "reported"
    os.environ[REPORT] = str(report)
    try:
        torchrun.run(torchrun.parse_args(argv))
    except SignalException as stop:
        return 128 + stop.sigval
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if report.is_file():
            return int(report.read_text(encoding="utf-8"))
        if failure.exitcode > 0:
            return failure.exitcode
        raise RunError(
            f"process {rank} was killed ({failure.signal_name()}): by the system if memory ran out, else by hand; "
            "resume from the last checkpoint with --load"
        ) from None
    finally:
        shutil.rmtree(report.parent)
        del os.environ[REPORT]
    return 0


if __name__ == "__main__":
    run(main, hands_on=True)
