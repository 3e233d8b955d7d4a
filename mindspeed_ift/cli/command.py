"""How every command ends: exit code 0, one line and 2 (data or flags), or one line and 1 (the run itself)."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable

from mindspeed_ift.config.errors import RunError, UserError

Main = Callable[[list[str]], int]


def run(main: Main, argv: list[str] | None = None) -> None:
    """Run ``main(argv)`` and leave the process with its exit code.

    ``--debug`` anywhere on the line shows the traceback that is otherwise kept from the user.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    sys.exit(_guarded(main, argv, debug))


def _guarded(main: Main, argv: list[str], debug: bool) -> int:
    try:
        return main(argv)
    except UserError as error:
        return _report(error, str(error), 2, debug)
    except RunError as error:
        return _report(error, str(error), 1, debug)
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


def _report(error: BaseException, message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(type(error), error, error.__traceback__)
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code
