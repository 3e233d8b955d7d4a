"""Worlds of processes, forked from one process that has imported what they need: an import takes longer than a tiny run.

`run` asks that process, one for all tests of a pytest process. A worker is a module, imported there, whose ``run_line`` is
called by every rank of a world of its own for each line of words: the threads of process groups end with their process,
of which a few dozen worlds in one process would leave thousands.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from datetime import timedelta
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_IMPORTED = (
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "mindspeed_ift.cli.generate",
    "mindspeed_ift.cli.tune",
    "mindspeed_ift.training.tune",
    "torch._dynamo",  # by the optimizer
)


def run(
    lines: list[list[str]],
    processes: int,
    worker: str = "tests.distributed.worker",
    environment: dict[str, str] | None = None,
) -> str:
    """Run lines one after another, each in a world of ``processes`` ranks on the CPU, or of as many as its first word says.

    Returns what the ranks printed. A rank that fails ends its world and the test; of a line that begins with "hang" each
    rank must fail. ``environment``: of the process that forks, in place of this one's.
    """
    nursery = _nursery(frozenset((os.environ if environment is None else environment).items()))
    assert nursery.stdin is not None and nursery.stdout is not None
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as output:
        json.dump({"worker": worker, "lines": lines, "processes": processes, "output": output.name}, nursery.stdin)
        nursery.stdin.write("\n")
        nursery.stdin.flush()
        answer = json.loads(nursery.stdout.readline() or '"the process that forks the ranks has died"')
        printed = output.read()
    assert answer == "", f"{answer}\n{printed[-8000:]}"
    return printed


@cache
def _nursery(given: frozenset[tuple[str, str]]) -> subprocess.Popen[str]:
    environment = {"PYTHONPATH": str(ROOT), **dict(given), "OMP_NUM_THREADS": "1", "MINDSPEED_IFT_DEVICE": "cpu"}
    words = [sys.executable, "-m", "tests.distributed.worlds"]
    process = subprocess.Popen(
        words, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(process.terminate)
    return process


def main() -> None:
    """Answer requests, a line each, until there are no more."""
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what an import prints is no answer
    for name in _IMPORTED:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    for request in map(json.loads, sys.stdin):
        print(json.dumps(_answer(**request)), file=answers, flush=True)


def _answer(worker: str, lines: list[list[str]], processes: int, output: str) -> str:
    importlib.import_module(worker)
    for number, line in enumerate(lines):
        size, words = (int(line[0]), line[1:]) if line[0].isdigit() else (processes, line)
        if not _world(worker, words, size, output):
            return f"line {number} failed on {size} ranks: {' '.join(words)}"
    return ""


def _world(worker: str, words: list[str], size: int, output: str) -> bool:
    """Whether all ranks ended as they should."""
    fork = multiprocessing.get_context("fork")
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        ranks = [fork.Process(target=_rank, args=(worker, words, rank, size, server, output)) for rank in range(size)]
        for rank in ranks:
            rank.start()
    running, as_expected = list(ranks), True
    while running:
        ended = wait([rank.sentinel for rank in running])
        for rank in [rank for rank in running if rank.sentinel in ended]:
            rank.join()
            running.remove(rank)
            as_expected &= rank.exitcode == int(words[0] == "hang")
        if not as_expected:
            for rank in running:
                rank.kill()
    return as_expected


def _rank(worker: str, words: list[str], rank: int, size: int, server: socket.socket, output: str) -> None:
    import torch.distributed as dist

    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    port = server.getsockname()[1]
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in places.items()})
    minutes = timedelta(minutes=3)
    # The socket listens already: nobody else can take the port. The libuv of torch 2.6 and 2.7 takes no such socket.
    listening = server.detach() if rank == 0 else None
    store = dist.TCPStore("127.0.0.1", port, size, rank == 0, minutes, master_listen_fd=listening, use_libuv=False)
    try:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=minutes)
        importlib.import_module(worker).run_line(words)
        dist.destroy_process_group()
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        with contextlib.suppress(ValueError):
            sys.stdout.flush()
            sys.stderr.flush()


if __name__ == "__main__":
    main()
