"""torchrun that ends as its processes end: ``python -m mindspeed_ift.cli.torchrun`` takes torchrun's words.

torchrun itself answers a failed process with a page of its own and exit code 1, whatever the process said and returned.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

    from mindspeed_ift.devices.device import set_environment

    # Processes say themselves why they end (see cli/command.py).
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    report = Path(tempfile.mkdtemp(prefix="mindspeed_ift_")) / "reported"
    os.environ[REPORT] = str(report)
    words = torchrun.parse_args(argv)
    set_environment(int(words.nproc_per_node) if words.nproc_per_node.isdecimal() else None)
    words.signals_to_handle = "SIGHUP,SIGQUIT"  # SIGTERM and SIGINT are for the processes to answer
    asked = _pass_on(SignalException)
    try:
        torchrun.run(words)
    except SignalException as stop:
        return 128 + stop.sigval
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        # A process of the last attempt; those of the attempts before have said why they ended.
        reported = Path(f"{report}.{words.max_restarts}")
        if reported.is_file():
            return int(reported.read_text(encoding="utf-8"))
        if asked:
            return 128 + asked[0]
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


def _pass_on(second: Callable[[str, signal.Signals], BaseException]) -> list[int]:
    """Hand the first SIGTERM or SIGINT on to the processes, which may save before they end; the second ends them.

    torchrun would kill them after half a minute, and never end with 0. They are in sessions of their own, out of a
    terminal's reach.

    Args:
        second: torchrun's exception, that makes it end its processes.

    Returns:
        A list that gets the number of the signal.
    """
    asked: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        if asked:
            raise second("asked to stop twice", signal.Signals(number))
        asked.append(number)
        for child in Path(f"/proc/self/task/{threading.main_thread().native_id}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), number)

    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:  # as the shell tells what it puts into the background
            signal.signal(number, pass_on)
    return asked


if __name__ == "__main__":
    run(main, hands_on=True)
