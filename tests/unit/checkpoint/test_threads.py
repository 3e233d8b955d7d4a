"""Jobs in threads: all of them, so many at a time, until one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from mindspeed_ift.checkpoint.threads import run_all


@pytest.mark.parametrize("workers", [1, 3])
def test_results_are_in_order_and_so_many_run_at_a_time(workers: int) -> None:
    begun, together = 0, threading.Barrier(workers, timeout=10)

    def job(number: int) -> int:
        together.wait()  # all of them, and no more, for 3 divides 12
        return number * number

    def jobs() -> Iterator[Callable[[], int]]:
        nonlocal begun
        for number in range(12):
            begun += 1
            yield partial(job, number)

    assert run_all(jobs(), workers) == [number * number for number in range(12)] and begun == 12


@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_failure_none_is_begun(workers: int) -> None:
    done = []

    def job(number: int) -> None:
        if number == 3:
            raise ValueError("of the third")
        done.append(number)

    with pytest.raises(ValueError, match="of the third"):
        run_all((partial(job, number) for number in range(100)), workers)
    assert len(done) <= 3 + 2 * workers
