"""A position in the run in, the micro-batches of one optimizer step out."""

from __future__ import annotations

from dataclasses import dataclass

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.balanced_order import BalancedOrder
from mindspeed_ift.data.batch import Batch, SequenceMode
from mindspeed_ift.data.blending import BlendedOrder
from mindspeed_ift.data.dataset import Samples
from mindspeed_ift.data.order import SampleOrder
from mindspeed_ift.data.overlong import Overlong, cut_sample, refuse_overlong
from mindspeed_ift.data.sample import Sample

Order = SampleOrder | BalancedOrder | BlendedOrder
"""What a run may ask which sample comes when."""


@dataclass(frozen=True)
class MicroBatches:
    """The data of one data parallel rank. Has no position of its own: the run says how many samples are consumed.

    Attributes:
        dataset: All samples.
        sample_range: Those of this split.
        order: Over ``len(sample_range)`` samples.
        mode: How samples become rows.
        micro_batch_size: Rows of a micro-batch.
        data_rank: Rank in the data parallel group.
        data_size: Size of that group.
        overlong: What becomes of samples longer than ``mode.seq_length``; a packed row of several samples cannot be
            cut and is always refused.

    Raises:
        UserError: Samples are too long and not to be cut.
    """

    dataset: Samples
    sample_range: range
    order: Order
    mode: SequenceMode
    micro_batch_size: int
    data_rank: int = 0
    data_size: int = 1
    overlong: Overlong = Overlong.CUT_TURNS

    def __post_init__(self) -> None:
        if self.order.num_samples != len(self.sample_range):
            raise UserError(
                f"an order over {self.order.num_samples} samples does not fit {len(self.sample_range)} samples"
            )
        if not self.mode.samples_can_be_cut:
            remedy = "a packed row cannot be cut: give at least the --seq-length that the dataset was prepared with"
            refuse_overlong(self.dataset, self.sample_range, self.mode.seq_length, remedy)
        elif self.overlong is Overlong.REFUSE:
            remedy = "raise --seq-length, or leave out --no-cut-token"
            refuse_overlong(self.dataset, self.sample_range, self.mode.seq_length, remedy)

    def take(self, consumed_samples: int, num_micro_batches: int) -> list[Batch]:
        """Micro-batches of one optimizer step on this rank.

        Micro-batch ``j`` of rank ``r`` takes samples ``consumed + j * b * d + r * b`` and the ``b - 1`` after it, for
        micro-batch size ``b`` and data parallel size ``d``. Nothing is ever left over: after the last sample of an
        epoch comes the first of the next.

        Args:
            consumed_samples: Samples that all ranks together have taken before this step.
            num_micro_batches: How many to take.
        """
        return [
            self.mode.collate([sample for _, sample in rows])
            for rows in self.numbered(consumed_samples, num_micro_batches)
        ]

    def numbered(self, consumed_samples: int, num_micro_batches: int) -> list[list[tuple[int, Sample]]]:
        """What `take` makes its micro-batches of: the rows of each, as (number in the dataset, sample as it is cut)."""
        stride = self.micro_batch_size * self.data_size
        first = consumed_samples + self.data_rank * self.micro_batch_size
        return [
            [self._sample(first + number * stride + row) for row in range(self.micro_batch_size)]
            for number in range(num_micro_batches)
        ]

    def _sample(self, consumed: int) -> tuple[int, Sample]:
        number = self.sample_range[self.order.index(consumed)]
        return number, cut_sample(self.dataset[number], self.mode.seq_length, self.overlong)
