"""How fast rows are planned and how full they are, beside the plain quadratic knapsack.

``python benchmarks/packing.py`` takes half a minute; lengths are log-normal. "plan": which lengths share a row; "all":
which samples. CPU seconds of one core.
"""

from __future__ import annotations

import argparse
import bisect
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mindspeed_ift.data.packing import PackRules, pack
from mindspeed_ift.data.packing_algorithms import best_fit_placements, greedy_rows

MEAN = {4096: 5.59, 32768: 8.0}
"""Of the logarithm of the lengths: 440 and 4,800 tokens on average."""


def main() -> None:
    """Print a line for each algorithm, number of samples and length of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a hundred thousand samples instead of a million")
    most = 100_000 if parser.parse_args().quick else 1_000_000
    heads = f"{'samples':>10}{'row':>8}{'plan s':>9}{'all s':>9}{'rows':>9}{'bound':>9}{'rows/bound':>12}"
    print(f"{'algorithm':<18}{heads}")
    for number, length in ((20_000, 4096), (100_000, 4096), (most, 4096), (most, 32768)):
        lengths = some_lengths(number, length)
        rules = PackRules(length)
        if number <= 100_000:
            rows, seconds = timed(plain_knapsack, lengths.tolist(), rules.capacity)
            report("plain knapsack", lengths, rules, None, seconds, rows)
        counts = np.bincount(lengths, minlength=length).tolist()
        planners = {"greedy-knapsack": greedy_rows, "best-fit": best_fit_placements}
        for algorithm in ("greedy-knapsack", "best-fit", "sequential", "balanced"):
            rules = PackRules(length, algorithm)
            planner = planners.get(algorithm)
            plan = timed(planner, counts, rules.capacity, rules.max_segments)[1] if planner else None
            packs, seconds = timed(pack, lengths, rules)
            report(algorithm, lengths, rules, plan, seconds, len(packs))


def some_lengths(number: int, length: int) -> np.ndarray:
    """Log-normal lengths from 1 to one less than a row: int64 ``[number]``."""
    drawn = np.random.default_rng(0).lognormal(MEAN[length], 1, number)
    return np.clip(drawn.astype(np.int64) + 1, 1, length - 1)


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """The result and the CPU seconds of one call: other programs on the machine do not count."""
    started = time.process_time()
    return work(*arguments), time.process_time() - started


def plain_knapsack(lengths: list[int], capacity: int) -> int:
    """The greedy knapsack as LLaMA-Factory's loop has it, on a sorted list: number of rows."""
    left, rows = sorted(lengths), 0
    while left:
        room = capacity
        while (place := bisect.bisect_right(left, room) - 1) >= 0:
            room -= left.pop(place)
        rows += 1
    return rows


def report(
    algorithm: str, lengths: np.ndarray, rules: PackRules, plan: float | None, seconds: float, rows: int
) -> None:
    """Print one line."""
    bound = -(-int(lengths.sum()) // rules.capacity)
    planned = "" if plan is None else f"{plan:.3f}"
    print(
        f"{algorithm:<18}{len(lengths):>10,}{rules.seq_length:>8,}{planned:>9}{seconds:>9.3f}{rows:>9,}{bound:>9,}"
        f"{rows / bound:>12.5f}"
    )


if __name__ == "__main__":
    main()
