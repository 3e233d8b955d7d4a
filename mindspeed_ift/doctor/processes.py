"""A module in a process of its own, with a time limit: what it finds is a list of findings whatever becomes of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from mindspeed_ift.devices.diagnosis import collective
from mindspeed_ift.devices.diagnosis.finding import Finding, Told, read_account

_ROOT = Path(__file__).resolve().parents[2]


def run_apart(module: str, words: Sequence[str], first: str, remedy: str, seconds: float) -> Told:
    """Run a module that writes an account.

    Args:
        module: with a ``__main__``; its first word is the path of its account.
        words: after that.
        first: its first step, blamed if there is no account.
        remedy: where it was killed, or took too long.
        seconds: it may take.
    """
    return _run([[module, *words]], [{}], first, remedy, seconds)


def try_collective(ranks: int, seconds: float) -> list[Finding]:
    """Start local ranks that sum up their numbers."""
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    places = [meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"} for rank in range(ranks)]
    lines = [[collective.__name__]] * ranks
    return _run(lines, places, collective.NAME, collective.REMEDY, seconds).findings


def _run(lines: list[list[str]], places: list[dict[str, str]], first: str, remedy: str, seconds: float) -> Told:
    """Processes that belong together; the first writes the account, and all end with the first that fails."""
    with tempfile.TemporaryDirectory(prefix="mindspeed_ift_") as folder:
        account, said = Path(folder) / "account", Path(folder) / "said"
        with said.open("wb") as out:
            processes = [
                subprocess.Popen(
                    [sys.executable, "-m", module, str(account), *words],
                    env=os.environ | {"PYTHONPATH": _python_path()} | place,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
                for (module, *words), place in zip(lines, places, strict=True)
            ]
            try:
                ended = _wait(processes, seconds)
            finally:
                for process in processes:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        told = read_account(account, first)
        if told.unfinished is not None:
            lines_said = said.read_text(encoding="utf-8", errors="replace").splitlines()
            last = [line for line in lines_said if line.strip() and not line.startswith("frame #")]
            how = f"{ended}; its last words: {last[-1].strip()[:300]}" if last else ended
            told.findings.append(Finding(told.unfinished, "red", f"its process {how}", remedy))
        return told


def _wait(processes: list[subprocess.Popen[bytes]], seconds: float) -> str:
    """How the first ended, or another that failed before it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        codes = [process.poll() for process in processes]
        failed = next((code for code in codes if code), 0)
        if failed:
            return f"was killed by signal {-failed}" if failed < 0 else f"ended with {failed}"
        if None not in codes:
            return "ended with 0"
        time.sleep(0.05)
    return f"took longer than {seconds:.0f} seconds"


def _python_path() -> str:
    before = os.environ.get("PYTHONPATH")
    return str(_ROOT) + (os.pathsep + before if before else "")
