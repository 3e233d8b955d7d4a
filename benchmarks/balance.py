"""How much longer the costliest data parallel rank computes attention than the mean, shuffled and with --balance-packs.

``python benchmarks/balance.py`` takes seconds. Lengths are drawn like those of instruction data: short instructions,
calls of tools, a few long thoughts; rows of 32,768 tokens over 8 ranks.
"""

from __future__ import annotations

import numpy as np

from mindspeed_ift.data.order import BalancedOrder, SampleOrder, imbalance
from mindspeed_ift.data.packing import PackRules, pack

LENGTH, RANKS = 32_768, 8
PARTS = ((0.75, 130, 0.75), (0.23, 415, 0.6), (0.02, 1160, 0.6))
"""Share of the samples, middle length in tokens, width of its logarithm."""


def main() -> None:
    """Print a line for each size of data, algorithm and batch."""
    print(
        f"{'algorithm':<18}{'samples':>10}{'rows':>7}{'micro batch':>13}{'per step':>10}{'shuffled':>10}{'balanced':>10}"
    )
    for number in (100_000, 300_000, 1_000_000):
        lengths = some_lengths(number)
        for algorithm in ("greedy-knapsack", "sequential"):
            costs = costs_of_rows(lengths, PackRules(LENGTH, algorithm))
            shuffled = SampleOrder(len(costs), seed=1)
            plain = costs[[shuffled.index(position) for position in range(len(costs))]]
            for rows, micro_batches in ((1, 1), (1, 4), (2, 2)):
                order = BalancedOrder(costs, 1, RANKS, rows, micro_batches)
                before, after = (
                    imbalance(found, RANKS, rows, micro_batches) for found in (plain, costs[order.permutation(0)])
                )
                shape = f"{number:>10,}{len(costs):>7,}{rows:>13}{micro_batches:>10}"
                print(f"{algorithm:<18}{shape}{before:>10.3f}{after:>10.3f}")


def some_lengths(number: int) -> np.ndarray:
    """Lengths from 2 to one less than a row, in random order: int64 ``[number]``."""
    random = np.random.default_rng(0)
    parts = [random.lognormal(np.log(middle), width, int(share * number)) for share, middle, width in PARTS]
    return np.clip(random.permutation(np.concatenate(parts)).astype(np.int64) + 1, 2, LENGTH - 1)


def costs_of_rows(lengths: np.ndarray, rules: PackRules) -> np.ndarray:
    """Sum of the squared lengths of the samples and the pads of each row: float64 ``[rows]``."""
    packs = pack(lengths, rules)
    taken, starts = lengths[packs.samples].astype(np.float64), packs.starts[:-1]
    return np.add.reduceat(taken**2, starts) + (rules.seq_length - np.add.reduceat(taken, starts)) ** 2


if __name__ == "__main__":
    main()
