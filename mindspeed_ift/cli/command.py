"""How every command ends: exit code 0, one line and 2 (data or flags), or one line and 1 (the run itself).

Where nobody reads what it prints any more (``| head``), it ends without a word, as other tools do.
"""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from mindspeed_ift.config.errors import RunError, UserError

Main = Callable[[list[str]], int]

_BROKEN_PIPE = 128 + signal.SIGPIPE
"""What a shell says of a tool that the signal has ended."""

REPORT = "MINDSPEED_IFT_REPORT"
"""Environment variable with the path of a file that the first process to fail makes, with its exit code; at each attempt
of ``torchrun --max-restarts`` another, whose number is added."""


def run(main: Main, argv: list[str] | None = None, *, hands_on: bool = False) -> None:
    """Run ``main(argv)`` and leave the process with its exit code.

    ``--debug`` anywhere on the line shows the traceback that is otherwise kept from the user.

    Args:
        main: the command.
        argv: its words; None: those of the process.
        hands_on: it starts another command with these words, ``--debug`` among them.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug" or hands_on]
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a terminal cannot write (Chinese under LC_ALL=C, say) is escaped, not the end of the run.
        sys.stdout.reconfigure(errors="backslashreplace")
    code = _guarded(main, argv, debug)
    if code and os.environ.get("TORCHELASTIC_ERROR_FILE"):
        # One of several: peers may be gone, and process groups without them hang or abort when they are taken apart.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def tell(lines: Iterable[str]) -> None:
    """Lines on standard error, beside the answers of a command; of several processes the first says them."""
    if os.environ.get("RANK", "0") == "0":
        for line in lines:
            print(line, file=sys.stderr, flush=True)


def fail(error: RunError) -> None:
    """End this process with one line and 1, from whatever thread."""
    code = _report(error, str(error), 1, debug=False)
    sys.stderr.flush()
    os._exit(code)


def _guarded(main: Main, argv: list[str], debug: bool) -> int:
    try:
        code = main(argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _report(error, str(error), 2, debug)
    except RunError as error:
        return _report(error, str(error), 1, debug)
    except BrokenPipeError as error:
        if not _nobody_reads():
            return _report(error, str(error), 1, debug)
        _silence()
        _first_to_fail(_BROKEN_PIPE)
        return _BROKEN_PIPE
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _report(
                error, f"no space left on the disk ({error.filename or error}); free some and run again", 1, debug
            )
        return _report(error, str(error), 1, debug)
    except KeyboardInterrupt as error:
        return _report(error, "interrupted", 130, debug)
    except Exception as error:  # noqa: BLE001 - the last resort: a bug of ours, still one line
        text = " ".join(str(error).split())
        return _report(error, f"{type(error).__name__}: {text} (run again with --debug for the traceback)", 1, debug)


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has ended, as ``head`` does."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except (OSError, ValueError):  # no file
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _silence() -> None:
    """Let what is still to be printed vanish."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _report(error: BaseException, message: str, code: int, debug: bool) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _silence()
    if _first_to_fail(code):
        if debug:
            traceback.print_exception(type(error), error, error.__traceback__)
        print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _first_to_fail(code: int) -> bool:
    """Whether no other process of this start has reported: they fail of the same, or of the first one's end."""
    report = _report_of_start()
    if report is None:
        return True
    try:
        with open(report, "x", encoding="utf-8") as file:
            file.write(str(code))
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def _report_of_start() -> Path | None:
    """Where the first process of a start that fails leaves its exit code: where `cli.torchrun` says.

    torchrun gives each process a file for its error; the folder above those of all processes is that of this start.
    """
    if REPORT in os.environ:
        return Path(f"{os.environ[REPORT]}.{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}")
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(file).parents[1] / "reported" if file else None
