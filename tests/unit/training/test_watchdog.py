"""Silence becomes an error that says where everybody is; a word in time keeps it quiet."""

from __future__ import annotations

import os
import queue
import threading
import time
from pathlib import Path

import pytest

from mindspeed_ift.config.errors import RunError
from mindspeed_ift.training import watchdog
from mindspeed_ift.training.watchdog import Watchdog


def stuck(until: threading.Event) -> None:
    """What hangs."""
    assert until.wait(20)


def test_a_hang_is_told_with_the_place_of_each_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "_GRACE", 10.0)
    folder, told, go_on = tmp_path / "hang_step_3", queue.Queue[RunError](), threading.Event()
    folder.mkdir()
    of_an_attempt_before = folder / "rank_00000.txt"
    of_an_attempt_before.write_text("elsewhere\n")
    os.utime(of_an_attempt_before, (1, 1))

    def other_rank() -> None:
        time.sleep(0.4)
        (folder / "rank_00000.txt").write_text("wait (its/own.py:1)\n\nmore")

    def fail(error: RunError) -> None:
        told.put(error)
        go_on.set()

    threading.Thread(target=other_rank).start()
    with Watchdog(0.2, tmp_path, 1, 2, fail, "raise it") as dog:
        dog.heard("step 3")
        stuck(go_on)
    message = str(told.get(timeout=5))
    assert message.startswith(
        "step 3 has not ended within 0.00333333 minutes: rank 0 in wait (its/own.py:1), rank 1 in "
    )
    assert "rank 1 in wait (" in message and "elsewhere" not in message
    assert message.endswith(f"; the stack of each rank is in {folder}; raise it")
    own = (folder / "rank_00001.txt").read_text("utf-8")
    assert "in stuck" in own and "test_watchdog.py" in own
    printed = capfd.readouterr().err
    assert printed.startswith("rank 1, step 3:\n") and "in stuck" in printed


def test_words_in_time_keep_it_quiet(tmp_path: Path) -> None:
    told: list[RunError] = []
    with Watchdog(0.5, tmp_path, 0, 1, told.append, "") as dog:
        for step in range(12):
            dog.heard(f"step {step}")
            time.sleep(0.1)
    time.sleep(0.6)
    assert not told and not list(tmp_path.iterdir())


def test_what_takes_longer_is_given_longer(tmp_path: Path) -> None:
    told: list[RunError] = []
    with Watchdog(0.3, tmp_path, 0, 1, told.append, "") as dog:
        dog.heard("the evaluation after step 3", 10)
        time.sleep(0.9)
        dog.heard("the evaluation after step 4", 10**15)  # of all that there is
        time.sleep(0.1)
    assert not told


def test_a_hang_after_what_may_take_long_is_found(tmp_path: Path) -> None:
    """No later than one at any other time."""
    told, go_on = list[RunError](), threading.Event()

    def fail(error: RunError) -> None:
        told.append(error)
        go_on.set()

    with Watchdog(0.2, tmp_path, 0, 1, fail, "") as dog:
        dog.heard("the evaluation after step 3", 1000)
        time.sleep(0.5)
        dog.heard("step 4")
        stuck(go_on)
    assert str(told[0]).startswith("step 4 has not ended")


def test_without_a_folder_the_stack_is_on_the_screen(capfd: pytest.CaptureFixture[str]) -> None:
    told, go_on = list[RunError](), threading.Event()

    def fail(error: RunError) -> None:
        told.append(error)
        go_on.set()

    with Watchdog(0.1, None, 0, 1, fail, "raise it"):
        stuck(go_on)
    assert "the start has not ended" in str(told[0]) and "rank 0 is in wait" in str(told[0])
    assert "in stuck" in capfd.readouterr().err
