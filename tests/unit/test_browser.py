"""ci/browser.sh says in one line whether there is a browser, and installs one where it can."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "ci" / "browser.sh"
TOOLS = ("bash", "mktemp", "rm", "tail", "timeout", "chmod", "env")


def run(folder: Path, user: int, apt_get: str | None) -> tuple[int, str]:
    """Exit code and what is said, on a machine with these and no other programs."""
    commands = {"id": f"echo {user}"} | ({} if apt_get is None else {"apt-get": apt_get})
    for name, text in commands.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    for name in TOOLS:
        found = shutil.which(name)
        if found and not (folder / name).exists():
            (folder / name).symlink_to(found)
    done = subprocess.run(["bash", str(SCRIPT)], env={"PATH": str(folder)}, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1 and not done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("user", "apt_get", "code", "said"),
    [
        (0, '[ "$1" = update ] || { echo >FOLDER/chromium; chmod +x FOLDER/chromium; }', 0, "chromium installed"),
        (0, "echo no index >&2; exit 100", 1, "chromium could not be installed (no index); going on without"),
        (0, "true", 1, "chromium could not be installed"),
        (1000, "true", 1, "only root with apt-get can install"),
        (0, None, 1, "only root with apt-get can install"),
    ],
)
def test_what_can_be_done_is_done(user: int, apt_get: str | None, code: int, said: str, tmp_path: Path) -> None:
    found = run(tmp_path, user, apt_get and apt_get.replace("FOLDER", str(tmp_path)))
    assert found[0] == code and said in found[1]
    if code == 0:
        assert run(tmp_path, user, "exit 100") == (0, "browser: chromium is there\n")
