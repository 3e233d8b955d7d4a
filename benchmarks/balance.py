"""How much longer the costliest data parallel rank computes attention than the mean: shuffled and with --balance-packs.

``python benchmarks/balance.py`` takes two minutes: rows of 32,768 tokens over 8 ranks, lengths drawn like those of
instruction data. ``--data-path PREFIX`` measures the lengths of a dataset of single samples instead.
"""

from __future__ import annotations

import argparse

import numpy as np

from mindspeed_ift.data.balanced_order import BalancedOrder, imbalances
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.order import SampleOrder
from mindspeed_ift.data.packing import PackRules, pack

LENGTH, RANKS = 32_768, 8
KINDS = {
    "instructions": ((1, 130, 0.75),),
    "calls of tools": ((1, 415, 0.6),),
    "thoughts": ((1, 1160, 0.6),),
    "all three": ((0.45, 130, 0.75), (0.4, 415, 0.6), (0.15, 1160, 0.6)),
    "long thoughts": ((1, 4800, 0.8),),
}
"""Share of the tokens, middle length, width of its logarithm."""


def main() -> None:
    """Print a line for each kind of data, number of rows, algorithm and number of micro-batches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-path", help="prefix of a dataset of one sample a document")
    path = parser.parse_args().data_path
    print(f"{'lengths':<16}{'algorithm':<17}{'rows':>7}{'per step':>10}{'shuffled':>16}{'balanced':>16}  mean (worst)")
    if path is not None:
        lengths = np.minimum(InstructionDataset(path).lengths.astype(np.int64), LENGTH - 1)
        report("of the dataset", lengths[lengths > 0])
        return
    for rows in (101, 831, 2_500, 10_000):
        for kind in KINDS:
            report(kind, some_lengths(kind, rows))


def report(kind: str, lengths: np.ndarray) -> None:
    """Print the lines of some samples. Steps of three epochs count, those between two of them too; of eight, where
    they are short."""
    for algorithm in ("greedy-knapsack", "sequential", "balanced"):
        costs = costs_of_rows(lengths, PackRules(LENGTH, algorithm))
        for micro_batches in (1, 4):
            shape = (RANKS, 1, micro_batches)
            rows = len(costs) * (8 if len(costs) < 500 else 3) // (RANKS * micro_batches) * RANKS * micro_batches
            found = []
            for order in (SampleOrder(len(costs), 1), BalancedOrder(costs, 1, *shape)):
                steps = imbalances(costs[[order.index(place) for place in range(rows)]], *shape)
                found.append(f"{steps.mean():.3f} ({steps.max():.2f})")
            print(
                f"{kind:<16}{algorithm:<17}{len(costs):>7,}{micro_batches:>10}{found[0]:>16}{found[1]:>16}", flush=True
            )


def some_lengths(kind: str, rows: int) -> np.ndarray:
    """Lengths of about so many rows, from 2 to one less than a row, in random order: int64 ``[samples]``."""
    random, parts = np.random.default_rng(0), []
    for share, middle, width in KINDS[kind]:
        drawn = random.lognormal(np.log(middle), width, int(1.2 * share * rows * LENGTH / middle))
        lengths = np.clip(drawn.astype(np.int64) + 1, 2, LENGTH - 1)
        parts.append(lengths[: int(np.searchsorted(lengths.cumsum(), share * rows * LENGTH))])
    return random.permutation(np.concatenate(parts))


def costs_of_rows(lengths: np.ndarray, rules: PackRules) -> np.ndarray:
    """Sum of the squared lengths of the samples and the pads of each row: float64 ``[rows]``."""
    packs = pack(lengths, rules)
    taken, starts = lengths[packs.samples].astype(np.float64), packs.starts[:-1]
    return np.add.reduceat(taken**2, starts) + (rules.seq_length - np.add.reduceat(taken, starts)) ** 2


if __name__ == "__main__":
    main()
