"""Weights of the labels of a micro-batch in, each shared out within its unit of the loss: token, sample, turn, micro-batch.

The loss of a step is the sum over units divided by their number in the global batch. A unit's loss is the mean over its
learnt tokens, each times its weight from the data, so that a message of half the weight counts half whatever the unit.
"""

from __future__ import annotations

import numpy as np

from mindspeed_ift.config.tuning import LossReduction


def share_out(
    weights: np.ndarray, samples: np.ndarray, reduction: LossReduction
) -> tuple[np.ndarray, np.ndarray | None]:
    """Divide weights by the number of learnt tokens of their unit.

    Whole rows are needed: a part of a row, such as a context parallel rank holds, does not show all of a unit.

    Args:
        weights: float32 ``[rows, length]``: of each position's label; 0 is not learnt.
        samples: int ``[rows, length]``: which sample of its row the label is of; equal ones stand together.
        reduction: What is a unit: a learnt token; the learnt tokens of a sample; an unbroken run of them in a sample
            (a turn); all of the micro-batch.

    Returns:
        The weights that a sum over tokens takes, float32, 0 where nothing is learnt; and the last learnt position of each
        unit, bool, so that units can be counted wherever a row is split. The latter None: each learnt token is a unit.
    """
    if reduction == "token":
        return weights, None
    shape = weights.shape
    places = np.flatnonzero(weights)
    begins = np.ones(len(places) + 1, bool)  # and where the next unit after the last one would begin
    if reduction == "micro-batch":
        begins[1:-1] = False
    else:
        rows, of_sample = places // shape[1], samples.reshape(-1)[places]
        begins[1:-1] = (rows[1:] != rows[:-1]) | (of_sample[1:] != of_sample[:-1])
        if reduction == "turn":
            begins[1:-1] |= places[1:] != places[:-1] + 1
    units = np.cumsum(begins[:-1]) - 1
    shared = np.zeros(weights.size, np.float32)
    shared[places] = weights.reshape(-1)[places] / np.bincount(units)[units]
    ends = np.zeros(weights.size, bool)
    ends[places[begins[1:]]] = True
    return shared.reshape(shape), ends.reshape(shape)
