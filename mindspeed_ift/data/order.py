"""Which sample comes when: ranges of a split, and orders that are pure functions of seed and position."""

from __future__ import annotations

import numpy as np

from mindspeed_ift.config.errors import UserError

_ALIKE = 0.005
"""Costs that differ by about this share are taken for equal, so that not always the same rows are dealt together."""


def split_ranges(num_samples: int, split: str) -> tuple[range, range, range]:
    """Contiguous ranges of a dataset for training, validation and test.

    Args:
        num_samples: Samples of the dataset.
        split: Up to three shares, as ``99,1,0`` or ``99/1/0``; they need not add up to 100.

    Returns:
        Ranges that cover the dataset in this order, each rounded to the nearest sample.

    Raises:
        UserError: The text names no shares.

    Source: Megatron's ``get_train_valid_test_split_``.
    """
    remedy = "give the shares of training, validation and test data, as --split 98,1,1"
    try:
        shares = [float(part) for part in split.replace("/", ",").split(",")]
    except ValueError:
        raise UserError(f"--split {split}: not numbers; {remedy}") from None
    if len(shares) > 3 or not all(0 <= share < float("inf") for share in shares):
        raise UserError(f"--split {split}: up to three shares, none negative; {remedy}")
    if not sum(shares):
        raise UserError(f"--split {split}: all shares are zero; {remedy}")
    shares += [0.0] * (3 - len(shares))
    ends = np.cumsum([round(share / sum(shares) * num_samples) for share in shares])
    # Rounding may miss the end by a sample or two; Megatron moves all inner ends by it.
    ends = np.clip(ends - (ends[-1] - num_samples), 0, num_samples).tolist()
    return range(0, ends[0]), range(ends[0], ends[1]), range(ends[1], ends[2])


class SampleOrder:
    """Position in the run -> sample, epoch after epoch. Needs no file and no state: a resume only knows the position.

    Args:
        num_samples: Samples of the range that is gone through.
        seed: Of the permutations; each epoch has its own.
        shuffle: False takes the samples as they stand.
    """

    def __init__(self, num_samples: int, seed: int, shuffle: bool = True) -> None:
        if num_samples < 1:
            raise UserError("no samples to go through; give more data, or this part a larger share of --split")
        self.num_samples = num_samples
        self.seed = seed
        self.shuffle = shuffle
        self._epoch = -1
        self._permutation = np.zeros(0, np.int64)

    def index(self, consumed: int) -> int:
        """Sample (0 .. num_samples - 1) to take when so many have been taken before it."""
        epoch, position = divmod(consumed, self.num_samples)
        if not self.shuffle:
            return position
        if epoch != self._epoch:
            generator = np.random.default_rng((self.seed % (1 << 32), epoch))
            self._epoch, self._permutation = epoch, generator.permutation(self.num_samples)
        return int(self._permutation[position])


class BalancedOrder:
    """Position in the run -> packed row, so that the data parallel ranks have as much attention to compute as each other.

    Rows of nearly the same cost are dealt out together, one to each rank; which are together, and when, changes from
    epoch to epoch. Each row is taken once an epoch. As with `SampleOrder` a resume only knows the position; another
    number of ranks or another batch size deals the rows in another way, so change these between epochs.

    Args:
        costs: float ``[rows]``: attention cost of each row that is gone through.
        seed: Of the order.
        ranks: Data parallel size.
        micro_batch_size: Rows of a micro-batch.
        num_micro_batches: Of a step and rank.
    """

    def __init__(
        self, costs: np.ndarray, seed: int, ranks: int = 1, micro_batch_size: int = 1, num_micro_batches: int = 1
    ) -> None:
        if len(costs) < 1:
            raise UserError("no samples to go through; give more data, or this part a larger share of --split")
        self.num_samples = len(costs)
        self.costs = np.asarray(costs, np.float64)
        self.seed = seed
        self.ranks, self.micro_batch_size, self.num_micro_batches = ranks, micro_batch_size, num_micro_batches
        self._epoch = -1
        self._permutation = np.zeros(0, np.int64)

    def index(self, consumed: int) -> int:
        """Row (0 .. num_samples - 1) to take when so many have been taken before it."""
        epoch, position = divmod(consumed, self.num_samples)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, self.permutation(epoch)
        return int(self._permutation[position])

    def permutation(self, epoch: int) -> np.ndarray:
        """Rows of an epoch in the order of their positions: int64 ``[num_samples]``.

        One pass of all ranks takes ``ranks * micro_batch_size`` rows. Those of a pass that this epoch shares with the
        one before or after are of middling cost.
        """
        generator = np.random.default_rng((self.seed % (1 << 32), epoch))
        size, begin = self.ranks * self.micro_batch_size, self.num_samples * epoch
        first, end = -(-begin // size), (begin + self.num_samples) // size
        passes = max(end - first, 0)
        blurred = self.costs * np.exp(generator.normal(0, _ALIKE, self.num_samples))
        falling = np.argsort(-blurred, kind="stable")
        shared = self.num_samples - passes * size
        middle = (self.num_samples - shared) // 2
        alone = generator.permutation(falling[middle : middle + shared])
        rounds = np.delete(falling, slice(middle, middle + shared)).reshape(-1, self.ranks)
        dealt = self._deal(rounds[generator.permutation(len(rounds))], first)
        head = first * size - begin if passes else shared
        return np.concatenate((alone[:head], dealt, alone[head:]))

    def _deal(self, rounds: np.ndarray, first: int) -> np.ndarray:
        """Rows in the order of positions, int64 ``[rounds * ranks]``: of each round the costliest goes to the rank that
        has computed least in this step, and in this epoch so far.

        Args:
            rounds: int64 ``[rounds, ranks]``; ``micro_batch_size`` of them are one pass.
            first: Number of the first pass, counted from the start of the run.
        """
        rows = self.micro_batch_size
        dealt = np.empty((len(rounds) // rows, self.ranks, rows), np.int64)
        of_step, of_epoch = np.zeros(self.ranks), np.zeros(self.ranks)
        for number, members in enumerate(rounds):
            at, row = divmod(number, rows)
            if row == 0 and (first + at) % self.num_micro_batches == 0:
                of_step[:] = 0
            members = members[np.argsort(-self.costs[members], kind="stable")]
            ranks = np.lexsort((of_epoch, of_step))
            dealt[at, ranks, row] = members
            of_step[ranks] += self.costs[members]
            of_epoch[ranks] += self.costs[members]
        return dealt.reshape(-1)


def imbalance(costs: np.ndarray, ranks: int, micro_batch_size: int, num_micro_batches: int) -> float:
    """How much longer the costliest rank computes than the mean, averaged over the whole steps of some rows.

    Args:
        costs: float ``[rows]``, in the order in which rows are taken from the start of a step on.
        ranks: Data parallel size.
        micro_batch_size: Rows of a micro-batch.
        num_micro_batches: Of a step and rank.

    Returns:
        Mean of max / mean, at least 1; 1 without a whole step.
    """
    size = ranks * micro_batch_size * num_micro_batches
    steps = np.asarray(costs, np.float64)[: len(costs) // size * size]
    sums = steps.reshape(-1, num_micro_batches, ranks, micro_batch_size).sum((1, 3))
    return float((sums.max(1) / sums.mean(1)).mean()) if len(sums) else 1.0
