"""How a command ends: one line and an exit code; the traceback only for --debug; one voice among several processes."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindspeed_ift.cli.command import run
from mindspeed_ift.config.errors import RunError, UserError

ROOT = Path(__file__).resolve().parents[3]
FULL = OSError(errno.ENOSPC, "No space left on device", "/data/x")


def ending(error: BaseException | None, *argv: str) -> int:
    def main(words: list[str]) -> int:
        assert "--debug" not in words
        if error is not None:
            raise error
        return 0

    with pytest.raises(SystemExit) as stop:
        run(main, list(argv))
    return stop.value.code


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 0, ""),
        (UserError("--lr is wrong"), 2, "error: --lr is wrong"),
        (RunError("the loss is nan"), 1, "error: the loss is nan"),
        (FULL, 1, "error: no space left on the disk (/data/x); free some and run again"),
        (PermissionError(13, "Permission denied", "/x"), 1, "error: [Errno 13] Permission denied: '/x'"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (KeyError("a\nb"), 1, "error: KeyError: 'a\\nb' (run again with --debug for the traceback)"),
    ],
)
def test_every_error_is_one_line(
    error: BaseException | None, code: int, line: str, capsys: pytest.CaptureFixture
) -> None:
    assert ending(error) == code
    assert capsys.readouterr().err.strip() == line


FLOOD = "for _ in range(10**5): print('line')"
FLOOD_OF_RICH = "from mindspeed_ift.cli.console import Console\n    print = Console().print\n    " + FLOOD


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (FLOOD, 141, ""),
        (FLOOD_OF_RICH, 141, ""),
        ("print('late')", 141, ""),
        ("print('late'); raise UserError('--lr is wrong')", 2, "error: --lr is wrong\n"),
        ("raise BrokenPipeError(32, 'a peer is gone')", 1, "error: [Errno 32] a peer is gone\n"),
    ],
    ids=["flood", "flood of rich", "at the end", "error", "another pipe"],
)
def test_it_ends_quietly_where_nobody_reads(body: str, code: int, said: str) -> None:
    lines = [
        "import sys",
        "from mindspeed_ift.cli.command import run",
        "from mindspeed_ift.config.errors import UserError",
        "def main(argv):",
        "    sys.stdout.write('first\\n')",
        "    sys.stdout.flush()",
        "    sys.stdin.read()",
        f"    {body}",
        "    return 0",
        "run(main, [])",
    ]
    program = "\n".join(lines)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, text=True, env=buffered, **pipes) as process:
        assert process.stdin and process.stdout and process.stderr
        assert process.stdout.readline() == "first\n"
        if "peer" not in body:
            process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == said
        assert process.wait(60) == code


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture) -> None:
    assert ending(UserError("bad"), "--lr", "--debug") == 2
    printed = capsys.readouterr().err
    assert "Traceback (most recent call last)" in printed and printed.strip().endswith("error: bad")


def test_of_several_processes_the_first_to_fail_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("os._exit", sys.exit)  # which spares the process the taking apart of its groups
    for rank in (1, 0):
        (tmp_path / str(rank)).mkdir()
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / str(rank) / "error.json"))
        assert ending(UserError(f"of rank {rank}"), "--debug") == 2
    printed = capsys.readouterr().err
    assert "of rank 1" in printed and "of rank 0" not in printed and printed.count("Traceback") == 1


def start(tmp_path: Path, program: str, *flags: str, restarts: int = 0) -> subprocess.Popen[str]:
    """Two processes of a small program under our torchrun."""
    script = tmp_path / "program.py"
    head = "import os, signal, sys, time\nfrom mindspeed_ift.cli.command import run\n"
    head += "from mindspeed_ift.config.errors import *\nrank = int(os.environ['RANK'])\n"
    script.write_text(head + program)
    words = ["--standalone", "--nproc_per_node", "2", "--max_restarts", str(restarts), str(script), *flags]
    environment = dict(os.environ, PYTHONPATH=f"{ROOT}:{tmp_path}")
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-m", "mindspeed_ift.cli.torchrun", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def launched(tmp_path: Path, program: str, *flags: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """The same, and wait for their end."""
    process = start(tmp_path, program, *flags, restarts=restarts)
    out, error = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


JOINS = (
    "def main(words):\n    import torch.distributed as dist\n    dist.init_process_group('gloo')\n    if rank == 1:\n"
    "        raise UserError('one')\n    dist.barrier()\nrun(main)\n"
)
FAILS = "def main(words):\n    raise {}\nrun(main)\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "flags", "code", "last"),
    [
        (FAILS.format("UserError('both')"), (), 2, "error: both"),
        (FAILS.format("UserError('one') if rank == 1 else SystemExit(time.sleep(60))"), (), 2, "error: one"),
        (JOINS, (), 2, "error: one"),
        (FAILS.format("RunError('both')"), ("--debug",), 1, "error: both"),
        (
            "if rank == 1:\n    os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)",
            (),
            1,
            "error: process 1 was killed",
        ),
    ],
    ids=["user", "one of them", "one that others wait for", "debug", "killed"],
)
def test_our_torchrun_ends_as_its_processes_end(
    tmp_path: Path, program: str, flags: tuple[str, ...], code: int, last: str
) -> None:
    done = launched(tmp_path, program, *flags)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == code, done.stderr
    assert (
        lines[-1].startswith(last)
        and "terminate called" not in done.stderr
        and sum(line.startswith("error: ") for line in lines) == 1
    ), done.stderr
    assert ("Traceback" in done.stderr) == bool(flags) and "FAILED" not in done.stderr, done.stderr


@pytest.mark.slow
def test_at_each_attempt_the_first_to_fail_speaks(tmp_path: Path) -> None:
    """And the exit code is the last one's."""
    program = (
        "def main(words):\n    attempt = os.environ['TORCHELASTIC_RESTART_COUNT']\n"
        "    raise (RunError if attempt == '0' else UserError)('attempt ' + attempt)\nrun(main)\n"
    )
    done = launched(tmp_path, program, restarts=1)
    assert done.returncode == 2 and done.stderr.splitlines() == ["error: attempt 0", "error: attempt 1"], done.stderr


@pytest.mark.slow
def test_our_torchrun_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its processes find the environment of a device's runtime set before they import anything."""
    (tmp_path / "torch_npu.py").touch()
    monkeypatch.delenv("CPU_AFFINITY_CONF", raising=False)
    # One write a line: torchrun starts Python unbuffered, and two processes share the pipe.
    names = ("CPU_AFFINITY_CONF", "OMP_NUM_THREADS")
    told = " + ' ' + ".join(f"os.environ.get('{name}', 'unset')" for name in names)
    program = f"sys.stdout.write(f'here {{rank}} ' + {told} + '\\n')"
    done = launched(tmp_path, program)
    assert done.returncode == 0 and done.stderr == ""
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert set(done.stdout.split("\n")) - {""} == {f"here 0 1 {threads}", f"here 1 1 {threads}"}


STOPS = """
import pathlib
def stop(*_):
    os.write(1, f'stopped {rank}\\n'.encode())  # at once: the other may write too
    time.sleep(0.5)
    sys.exit(0)
{handler}
pathlib.Path(sys.argv[1], str(rank)).touch()
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("handler", "code"), [("signal.signal(signal.SIGTERM, stop)", 0), ("", 143)], ids=["answered", "not answered"]
)
def test_our_torchrun_hands_sigterm_on(tmp_path: Path, handler: str, code: int) -> None:
    """Exit code 0 if the processes end well, as after a checkpoint; 143 if they know no better than to die."""
    process = start(tmp_path, STOPS.replace("{handler}", handler), str(tmp_path))
    until = time.monotonic() + 60
    while not all((tmp_path / rank).exists() for rank in "01"):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    assert process.returncode == code and error == ""
    assert sorted(out.split("\n")) == (["", "stopped 0", "stopped 1"] if handler else [""])


def test_what_a_terminal_cannot_write_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))

    def main(words: list[str]) -> int:
        print("答案 ok")
        return 0

    with pytest.raises(SystemExit) as stop:
        run(main, [])
    sys.stdout.flush()
    assert stop.value.code == 0 and written.getvalue() == b"\\u7b54\\u6848 ok\n"
