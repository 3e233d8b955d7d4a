"""Several datasets in, one out: which of them a position of the run takes its sample from, and which sample.

As `SampleOrder` the order is a function of seed and position: no file, no state, and what is kept in memory does not grow
with the length of the run.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from mindspeed_ift.data.boundaries import BoundarySource
from mindspeed_ift.data.dataset import Samples
from mindspeed_ift.data.order import SampleOrder
from mindspeed_ift.data.sample import Sample

_ROUND = 1 << 20
"""Largest number of turns after which shares are met exactly, unless a smaller one of them needs more for one turn."""


class Turns:
    """Position in the run -> dataset, so that at any position each dataset has had its share to within a sample.

    Megatron takes the dataset that is furthest behind its share, which does not bound how far others fall behind. Here,
    of those that are far enough behind, the one comes first that would otherwise be the first to fall too far behind.
    Turns repeat after a round; where the shares are such that a round would be long (over `_ROUND`), rounds differ and
    a dataset may be almost two samples from its share within one.

    Args:
        weights: of the datasets, each over 0.

    Source: R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32 (1980).
    """

    def __init__(self, weights: Sequence[Fraction | int]) -> None:
        common = math.lcm(*(Fraction(weight).denominator for weight in weights))
        whole = [int(weight * common) for weight in weights]
        self.weights = [weight // math.gcd(*whole) for weight in whole]
        """Smallest whole numbers in the ratio of the shares."""
        total = sum(self.weights)
        self._length = total if total <= _ROUND else max(_ROUND, -(-total // min(self.weights)))
        self._round = -1
        self._base = [0] * len(self.weights)
        self._taken: list[int] = []
        self._made = 0

    def shares(self) -> list[float]:
        """Of each dataset, as parts of 1."""
        return [weight / sum(self.weights) for weight in self.weights]

    def at(self, position: int) -> tuple[int, int]:
        """Number of the dataset that has this turn, and how many turns it has had before."""
        place = self._reach(position)
        dataset = int(self._datasets[place])
        return dataset, self._base[dataset] + int(self._before[place])

    def counts(self, position: int) -> list[int]:
        """How many turns each dataset has had before this one."""
        if position == 0:
            return [0] * len(self.weights)
        place = self._reach(position - 1)
        had = np.bincount(self._datasets[: place + 1], minlength=len(self.weights)).tolist()
        return [base + count for base, count in zip(self._base, had)]

    def _reach(self, position: int) -> int:
        """Place of a position within its round, which is made up to there."""
        number, place = divmod(position, self._length)
        if number != self._round:
            self._begin(number)
        self._make(place + 1)
        return place

    def _begin(self, number: int) -> None:
        """Forget the round at hand: a new one shares its turns out anew, so that together they keep to the shares."""
        ends = [self._shared_out((number + more) * self._length) for more in (0, 1)]
        self._round, self._base = number, ends[0]
        self._quota = [end - begin for begin, end in zip(*ends)]
        self._datasets = np.empty(self._length, np.int32)
        self._before = np.empty(self._length, np.int32)
        self._taken, self._made = [0] * len(self.weights), 0
        self._slack = 2 * (len(self._quota) - self._quota.count(0)) - 2
        self._waiting = [(self._opens(dataset), dataset) for dataset, quota in enumerate(self._quota) if quota]
        heapq.heapify(self._waiting)
        self._ready: list[tuple[float, int]] = []

    def _shared_out(self, turns: int) -> list[int]:
        """Turns of each dataset among the first ones: within one of its share, growing, together all of them."""
        total = sum(self.weights)
        ends = [(2 * before * turns + total) // (2 * total) for before in (0, *itertools.accumulate(self.weights))]
        return [end - begin for begin, end in zip(ends, ends[1:])]

    def _opens(self, dataset: int) -> int:
        """Place in the round from which on a dataset may have its next turn: when it is far enough behind."""
        taken, slack = self._taken[dataset], self._slack
        if not slack:  # it is the only one
            return taken
        return -(-self._length * (1 + slack * taken) // (slack * self._quota[dataset])) - 1

    def _due(self, dataset: int) -> float:
        """By when it must have had that turn."""
        margin = 1 / self._slack if self._slack else 0.0
        return (self._taken[dataset] + 1 - margin) * self._length / self._quota[dataset]

    def _make(self, end: int) -> None:
        """Give turns up to a place of the round."""
        for place in range(self._made, end):
            while self._waiting and self._waiting[0][0] <= place:
                dataset = heapq.heappop(self._waiting)[1]
                heapq.heappush(self._ready, (self._due(dataset), dataset))
            dataset = heapq.heappop(self._ready)[1]
            self._datasets[place], self._before[place] = dataset, self._taken[dataset]
            self._taken[dataset] += 1
            heapq.heappush(self._waiting, (self._opens(dataset), dataset))
        self._made = max(self._made, end)


class BlendedOrder:
    """Position in the run -> sample of a `Blend`: by `Turns` which dataset, each of which is shuffled in epochs of its own.

    Args:
        sizes: samples of each dataset.
        turns: their shares.
        seed: of the permutations; datasets, of which two may be the same, have different ones.
        shuffle: False takes the samples of each dataset as they stand.
    """

    def __init__(self, sizes: Sequence[int], turns: Turns, seed: int, shuffle: bool = True) -> None:
        self.num_samples = sum(sizes)
        self.turns = turns
        self._orders = [SampleOrder(size, seed + number, shuffle) for number, size in enumerate(sizes)]
        self._first = [0, *itertools.accumulate(sizes)]

    def index(self, consumed: int) -> int:
        """Sample (0 .. num_samples - 1) to take when so many have been taken before it."""
        dataset, before = self.turns.at(consumed)
        return self._first[dataset] + self._orders[dataset].index(before)

    def dealing(self, consumed: int) -> None:
        """None: samples are shuffled alone, see `BalancedOrder`."""


@dataclass(frozen=True)
class Part:
    """What a blend takes of a dataset.

    Attributes:
        samples: the dataset.
        taken: its samples that are gone through, at least one.
        boundaries: tells the samples of its rows apart; None where that is not asked for.
    """

    samples: Samples
    taken: range
    boundaries: BoundarySource | None = None


class Blend:
    """Samples of several datasets, numbered one dataset after the other; how often each is taken is a matter of the order.

    Args:
        parts: of it, each with at least one sample.
        weights: of the datasets; None: as many samples as each has, so that every sample comes once in a common epoch.
    """

    def __init__(self, parts: Sequence[Part], weights: Sequence[Fraction] | None) -> None:
        self.parts = parts
        self.sizes = [len(part.taken) for part in parts]
        self.turns = Turns(weights if weights is not None else self.sizes)
        self.prefix = " ".join(part.samples.prefix for part in parts)
        self.manifest: dict[str, Any] | None = next((p.samples.manifest for p in parts if p.samples.manifest), None)
        self.has_segments = all(part.boundaries is not None for part in parts)
        self.is_packed = any(part.samples.is_packed for part in parts)
        self.lengths: np.ndarray = np.concatenate(
            [part.samples.lengths[part.taken.start : part.taken.stop] for part in parts]
        )
        """int32 ``[samples]``: number of tokens of each sample."""
        self._first = [0, *itertools.accumulate(self.sizes)]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> Sample:
        """A sample, which tells its boundaries as neat-pack does if the blend has some."""
        part, within = self._place(number)
        sample = part.samples[within]
        if part.boundaries is None:
            return sample
        return replace(sample, segments=part.boundaries.segments(sample))

    def located(self, number: int) -> tuple[str, int]:
        """See `Samples.located`."""
        part, within = self._place(number)
        return part.samples.located(within)

    def order(self, seed: int, shuffle: bool) -> BlendedOrder:
        """In which its samples are taken."""
        return BlendedOrder(self.sizes, self.turns, seed, shuffle)

    def once(self) -> int:
        """How many samples can be taken before one comes a second time: of equal shares an epoch, else until a dataset has
        been gone through."""
        return bisect.bisect_left(range(1, len(self) + 1), True, key=self._repeats)

    def _repeats(self, taken: int) -> bool:
        return any(count > size for count, size in zip(self.turns.counts(taken), self.sizes))

    def check_fits(self, vocab_size: int) -> None:
        """See `Samples.check_fits`."""
        for part in self.parts:
            part.samples.check_fits(vocab_size)

    def _place(self, number: int) -> tuple[Part, int]:
        dataset = bisect.bisect_right(self._first, number) - 1
        part = self.parts[dataset]
        return part, part.taken[number - self._first[dataset]]
