"""Which sample comes when: ranges of a split, and orders that are pure functions of seed and position."""

from __future__ import annotations

import numpy as np

from mindspeed_ift.config.errors import UserError


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

    def dealing(self, consumed: int) -> None:
        """None: samples are shuffled alone, see `BalancedOrder`."""
