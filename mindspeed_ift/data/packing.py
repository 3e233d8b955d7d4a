"""Lengths and rules in, packs out: which samples share a row, and where they stand in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mindspeed_ift.config.data import PackingAlgorithm
from mindspeed_ift.data.balanced_packing import balanced
from mindspeed_ift.data.packing_algorithms import Packs, best_fit, greedy_knapsack, sequential

ALGORITHMS: dict[PackingAlgorithm, Callable[[np.ndarray, int, int], Packs]] = {
    "greedy-knapsack": greedy_knapsack,
    "best-fit": best_fit,
    "sequential": sequential,
    "balanced": balanced,
}


@dataclass(frozen=True)
class PackRules:
    """How samples become rows.

    Attributes:
        seq_length: Tokens of a row, pads included.
        algorithm: Which samples share a row.
        max_segments: Most segments of a row, its pads being one: what attention of many lengths can take.
        multiple: A sample takes a multiple of so many tokens, pads of its own at its end. Divides ``seq_length``.
        seed: Of the order of rows; only best-fit and balanced have no order of their own.
    """

    seq_length: int
    algorithm: PackingAlgorithm = "greedy-knapsack"
    max_segments: int = 1024
    multiple: int = 1
    seed: int = 1234

    @property
    def capacity(self) -> int:
        """Most tokens of the samples of a row. One position stays a pad, as MindSpeed-LLM keeps it; a sample that is
        one token short of the row may fill it with pads of its own."""
        return self.seq_length - (self.multiple == 1)

    def spaces(self, lengths: np.ndarray) -> np.ndarray:
        """Tokens that samples take in a row, pads of their own included: int64 of the shape of ``lengths``."""
        return -(-np.asarray(lengths, np.int64) // self.multiple) * self.multiple


def pack(lengths: np.ndarray, rules: PackRules) -> Packs:
    """Distribute samples over rows.

    Args:
        lengths: int ``[samples]``, each from 1 to one less than the length of a row.
        rules: How.

    Returns:
        Rows in the order of the reference (greedy-knapsack: row 0 starts with the longest sample), of the samples
        (sequential), or by the seed (best-fit, balanced), so that a row's place tells nothing about the lengths in it.
    """
    assert len(lengths) == 0 or (lengths.min() >= 1 and lengths.max() < rules.seq_length), "a sample that fits no row"
    packs = ALGORITHMS[rules.algorithm](rules.spaces(lengths), rules.capacity, rules.max_segments - 1)
    if rules.algorithm not in ("best-fit", "balanced"):
        return packs
    return packs.reordered(np.random.default_rng(rules.seed % (1 << 32)).permutation(len(packs)))


@dataclass(frozen=True)
class Places:
    """Where samples stand once they are packed.

    Attributes:
        rows: int32 ``[samples]``: the row of each sample, in the order of the samples.
        positions: int32 ``[samples]``: at which token of the row it begins.
    """

    rows: np.ndarray
    positions: np.ndarray


def places_in(packs: Packs, lengths: np.ndarray, rules: PackRules) -> Places:
    """Where `pack` put samples.

    Args:
        packs: What it returned: every sample once.
        lengths: int ``[samples]``, as it was given.
        rules: By which they were made.
    """
    spaces, sizes = rules.spaces(lengths)[packs.samples], np.diff(packs.starts)
    before = np.cumsum(spaces) - spaces
    found = Places(*(np.empty(len(packs.samples), np.int32) for _ in "rp"))
    found.rows[packs.samples] = np.repeat(np.arange(len(packs)), sizes)
    found.positions[packs.samples] = before - np.repeat(before[packs.starts[:-1]], sizes)
    return found


def describe_packs(packs: Packs, tokens: int, rules: PackRules) -> str:
    """One line: how many rows, how full, and whether the limit of segments made more of them.

    Args:
        packs: What `pack` returned.
        tokens: Of all samples in them.
        rules: By which they were made.
    """
    fill = tokens / max(len(packs) * rules.seq_length, 1)
    text = (
        f"{len(packs.samples):,} samples packed into {len(packs):,} rows of {rules.seq_length:,} ({rules.algorithm}),"
        f" {fill:.1%} full"
    )
    held = int(np.count_nonzero(np.diff(packs.starts) == rules.max_segments - 1))
    return text + (f"; {held:,} rows hold as many samples as --max-segments allows" if held else "")
