"""Sample: what one document of an indexed dataset holds, and what every sequence mode collates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

IGNORED_LABEL = -100
"""Label of a position that is not learnt (the value of PyTorch's cross entropy and of Hugging Face)."""


@dataclass(frozen=True)
class Sample:
    """Tokens of one document: one conversation, or one packed row of several.

    Attributes:
        input_ids: int32 ``[n]``.
        labels: int32 ``[n]``, *unshifted* (``labels[i]`` belongs to ``input_ids[i]``), ``-100`` where nothing is learnt.
        segments: int32 ``[n]``, 1..k for the k packed conversations and 0 for pads (neat-pack's attention_mask),
            or None where the dataset stores no boundaries.
        loss_weights: float32 ``[n]``, of ``labels``: the share of each in the loss, 0 where nothing is learnt; None
            where all that is learnt counts alike.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    segments: np.ndarray | None = None
    loss_weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def part(self, kept: slice | np.ndarray) -> Sample:
        """The tokens at some positions, with all that belongs to them."""
        return Sample(
            self.input_ids[kept],
            self.labels[kept],
            None if self.segments is None else self.segments[kept],
            None if self.loss_weights is None else self.loss_weights[kept],
        )

    @property
    def learnt_tokens(self) -> int:
        """How many labels are learnt."""
        return int(np.count_nonzero(self.labels != IGNORED_LABEL))
