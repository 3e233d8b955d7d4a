"""Costs of packed rows in, an order of the rows out in which data parallel ranks compute as much as each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.order import SampleOrder

_ALIKE = 0.005
"""Costs that differ by about this share are taken for equal, so that not always the same rows are dealt together."""
_UNEVEN = 0.01
"""Passes whose costliest row exceeds their mean by more than this share of the mean of all come in the same steps, in
which the micro-batches of a rank make up for each other."""
_STEPS_TO_DESCRIBE = 1000
_WORTH_A_WORD = 0.02
"""Share of the mean that the costliest rank may compute more before it is said why."""


@dataclass(frozen=True)
class Dealing:
    """By what the rows of an epoch are put together. A checkpoint keeps it, so that a run goes on with the same rows.

    Attributes:
        pass_rows: Rows that all ranks take at once, of nearly the same cost; 1: rows are only shuffled.
        step_rows: Of an optimizer step.
        start: Position in the run from which passes and steps are counted.
    """

    pass_rows: int
    step_rows: int
    start: int = 0


_SHUFFLED = Dealing(1, 1)


class BalancedOrder:
    """Position in the run -> packed row, so that the data parallel ranks have as much attention to compute as each other.

    Rows of nearly the same cost come together, one for each rank; which are together, and when, changes from epoch to
    epoch. Within a step rows are dealt so that the sums of the ranks are even. Each row is taken once an epoch.

    Which rows a step takes is a function of seed, position and `Dealing`; number of ranks and batch sizes only say
    which rank takes which of them. So a run that goes on within an epoch with others, or turns balancing on or off,
    goes through the rest of the epoch as the run before would have, and deals anew from the next epoch on.

    Args:
        costs: float ``[rows]``: attention cost of each row that is gone through.
        seed: Of the order.
        ranks: Data parallel size.
        micro_batch_size: Rows of a micro-batch.
        num_micro_batches: Of a step and rank.
        consumed: Rows taken before this run goes on; positions before it are not asked for.
        begun: Of the epoch in which it goes on; None if rows were only shuffled.
    """

    def __init__(
        self,
        costs: np.ndarray,
        seed: int,
        ranks: int = 1,
        micro_batch_size: int = 1,
        num_micro_batches: int = 1,
        consumed: int = 0,
        begun: Dealing | None = None,
    ) -> None:
        if len(costs) < 1:
            raise UserError("no samples to go through; give more data, or this part a larger share of --split")
        self.num_samples = len(costs)
        self.costs = np.asarray(costs, np.float64)
        self.seed = seed
        self.ranks, self.micro_batch_size, self.num_micro_batches = ranks, micro_batch_size, num_micro_batches
        pass_rows = ranks * micro_batch_size
        own = (pass_rows, pass_rows * num_micro_batches)
        self._begun = (begun or _SHUFFLED) if consumed else Dealing(*own)
        steps_go_on = (consumed - self._begun.start) % own[1] == 0
        same = own == (self._begun.pass_rows, self._begun.step_rows) and steps_go_on
        self._own = self._begun if same else Dealing(*own, start=consumed)
        # At the end of an epoch nothing is begun.
        self._begun_epoch = consumed // self.num_samples if consumed % self.num_samples else -1
        self._epoch, self._permutation = -1, np.zeros(0, np.int64)
        self._step, self._dealt = -1, np.zeros(0, np.int64)

    def index(self, consumed: int) -> int:
        """Row (0 .. num_samples - 1) to take when so many have been taken before it."""
        step, position = divmod(consumed - self._own.start, self._own.step_rows)
        assert step >= 0, "a position before the run"
        if step != self._step:
            self._step, self._dealt = step, self._deal(self._own.start + step * self._own.step_rows)
        return int(self._dealt[position])

    def dealing(self, consumed: int) -> Dealing:
        """Of the epoch in which a run stands that has taken so many rows."""
        return self._begun if consumed // self.num_samples == self._begun_epoch else self._own

    def describe(self, can_be_packed_anew: bool) -> str:
        """What balancing comes to, in the first steps of a run, those between two epochs included: one line.

        Args:
            can_be_packed_anew: Whether rows of more even cost can be had.
        """
        if self.ranks == 1:
            return "the only data parallel rank waits for no other; rows are shuffled"
        sizes = (self.ranks, self.micro_batch_size, self.num_micro_batches)
        each = self._own.step_rows
        rows = each * max(1, min(3 * self.num_samples // each, _STEPS_TO_DESCRIBE))
        balanced, shuffled = BalancedOrder(self.costs, self.seed, *sizes), SampleOrder(self.num_samples, self.seed)
        after, before = (
            float(imbalances(self.costs[[order.index(place) for place in range(rows)]], *sizes).mean()) - 1
            for order in (balanced, shuffled)
        )
        line = (
            f"in a step the costliest of {self.ranks} ranks computes {after:.1%} more attention than their mean"
            f" ({before:.1%} if rows were only shuffled)"
        )
        if after <= _WORTH_A_WORD:
            return line
        what = (
            "pack the samples with --packing-algorithm balanced" if can_be_packed_anew else "more data has more alike"
        )
        return f"{line}: some rows cost what no others do; {what}"

    def _deal(self, position: int) -> np.ndarray:
        """Rows of the step that begins at a position, int64 ``[step_rows]``: micro-batches, ranks, rows of each."""
        ranks = self.ranks
        rows = np.array([self._row(position + number) for number in range(self._own.step_rows)])
        rounds = rows[np.argsort(-self.costs[rows], kind="stable")].reshape(-1, ranks)
        dealt, sums = np.empty_like(rounds), np.zeros(ranks)
        # Where sums are equal, chance decides: over many steps no rank computes more than another.
        draw = np.random.default_rng((self.seed % (1 << 32), position)).permutation(ranks)
        for number, members in enumerate(rounds):
            emptiest = np.lexsort((draw, sums))
            dealt[number, emptiest] = members
            sums[emptiest] += self.costs[members]
        shape = (self.num_micro_batches, self.micro_batch_size, ranks)
        return dealt.reshape(shape).transpose(0, 2, 1).reshape(-1)

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, self.num_samples)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, self.permutation(epoch)
        return int(self._permutation[place])

    def permutation(self, epoch: int) -> np.ndarray:
        """Rows of an epoch in the order in which steps take them: int64 ``[num_samples]``."""
        how, begin = self.dealing(epoch * self.num_samples), epoch * self.num_samples
        generator = np.random.default_rng((self.seed % (1 << 32), epoch))
        if how.pass_rows == 1:
            return generator.permutation(self.num_samples)  # as `SampleOrder`
        blurred = self.costs * np.exp(generator.normal(0, _ALIKE, self.num_samples))
        falling = np.argsort(-blurred, kind="stable")
        # Positions before the first pass that is all of this epoch; together with those after the last one they are
        # of passes that this epoch shares with its neighbours.
        head = min((how.start - begin) % how.pass_rows, self.num_samples)
        count = (self.num_samples - head) // how.pass_rows
        passes, shared = self._passes(falling, count, how.pass_rows)
        shared = generator.permutation(shared)
        passes = passes[self._slots(passes, how, begin + head, generator)]
        return np.concatenate((shared[:head], passes.reshape(-1), shared[head:]))

    def _passes(self, falling: np.ndarray, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Neighbours in a row of falling costs: int64 ``[count, size]``, and those that are left over, neighbours too."""
        left, at = len(falling) - count * size, min(self._costlier_passes(size), count) * size
        return np.delete(falling, slice(at, at + left)).reshape(count, size), falling[at : at + left]

    def _costlier_passes(self, size: int) -> int:
        """How many passes of an epoch are costlier than the rows that are left over: so that all are the most even.

        The same in every epoch, so that what two epochs leave over is alike, for it shares a pass.
        """
        falling, fewest = np.sort(self.costs)[::-1], self.num_samples % size
        most = self.num_samples // size
        sums = np.zeros(max(most, 1))
        # An epoch leaves over the fewest, or, if it begins late in a pass, a pass more.
        for left, share in ((fewest, fewest / size), (fewest + size, 1 - fewest / size)):
            count = (self.num_samples - left) // size
            if count > 0 and left:
                above, below = (
                    _ratios(part.reshape(count, size)) for part in (falling[: count * size], falling[left:])
                )
                own = _ratios(np.lib.stride_tricks.sliding_window_view(falling, left)[::size])
                total = np.concatenate(([0], above.cumsum())) + np.concatenate((below[::-1].cumsum()[::-1], [0])) + own
                sums += share * total[: len(sums)]
        return int(sums.argmin())

    def _slots(self, passes: np.ndarray, how: Dealing, position: int, generator: np.random.Generator) -> np.ndarray:
        """Which pass comes when: int64 ``[passes]``.

        Args:
            passes: int64 ``[passes, rows]``, from the costliest on.
            how: Rows of a pass and step.
            position: Of the first pass.
            generator: Of this epoch.
        """
        each = how.step_rows // how.pass_rows
        order = generator.permutation(len(passes))
        if each == 1 or not len(passes):
            return order
        excess = _excess(self.costs[passes])
        first = (how.start - position) % how.step_rows // how.pass_rows
        steps = max(len(passes) - first, 0) // each
        together = min(-(-int((excess > _UNEVEN * self.costs[passes].mean()).sum()) // each), steps)
        uneven = np.sort(np.argsort(-excess, kind="stable")[: together * each])
        chosen = first + each * generator.permutation(steps)[:together]
        places = (chosen[:, None] + np.arange(each)).reshape(-1)
        others = order[~np.isin(order, uneven)]
        order[places] = uneven
        order[np.delete(np.arange(len(order)), places)] = others
        return order


def imbalances(costs: np.ndarray, ranks: int, micro_batch_size: int, num_micro_batches: int) -> np.ndarray:
    """How much longer the costliest rank computes than the mean: float ``[whole steps]``, each at least 1.

    Args:
        costs: float ``[rows]``, in the order in which rows are taken from the start of a step on.
        ranks: Data parallel size.
        micro_batch_size: Rows of a micro-batch.
        num_micro_batches: Of a step and rank.
    """
    size = ranks * micro_batch_size * num_micro_batches
    steps = np.asarray(costs, np.float64)[: len(costs) // size * size]
    sums = steps.reshape(-1, num_micro_batches, ranks, micro_batch_size).sum((1, 3))
    return sums.max(1) / sums.mean(1)


def _ratios(costs: np.ndarray) -> np.ndarray:
    """Highest cost / mean: float ``[passes]`` of ``[passes, rows]``."""
    return costs.max(1) / costs.mean(1)


def _excess(costs: np.ndarray) -> np.ndarray:
    """By how much the highest cost exceeds the mean: float ``[passes]`` of ``[passes, rows]``."""
    return costs.max(1) - costs.mean(1)
