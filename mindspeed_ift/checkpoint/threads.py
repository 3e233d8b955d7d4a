"""Jobs of a conversion in several threads: what they do is read and write files, which needs no lock of Python's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


def run_all(jobs: Iterable[Callable[[], T]], workers: int) -> list[T]:
    """Run jobs, at most ``workers`` at a time; so many are in memory at once, and no more are begun after one failed.

    Args:
        jobs: independent of each other.
        workers: 1 runs them in this thread.

    Returns:
        What they returned, in their order.

    Raises:
        Exception: what the first that failed raised, once those under way have ended.
    """
    if workers == 1:
        return [job() for job in jobs]
    results: list[Future[T]] = []
    pending: set[Future[T]] = set()
    with ThreadPoolExecutor(workers, thread_name_prefix="conversion") as pool:
        for job in jobs:
            if len(pending) == workers:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                if any(one.exception() for one in done):
                    break
            results.append(pool.submit(job))
            pending.add(results[-1])
    return [one.result() for one in results]
