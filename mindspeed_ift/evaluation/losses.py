"""The loss of each record, with several of them in a row for speed and rows dealt out to the data parallel ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from mindspeed_ift.data.batch import Packed
from mindspeed_ift.data.boundaries import StoredBoundaries
from mindspeed_ift.data.packing_algorithms import best_fit
from mindspeed_ift.data.sample import Sample
from mindspeed_ift.devices.device import current
from mindspeed_ift.inference.load import Loaded
from mindspeed_ift.inference.stages import run_stages

_MOST_SEGMENTS = 1024


class RecordLosses(NamedTuple):
    """Of each sample, over its learnt tokens.

    Attributes:
        sums: cross entropy in nats, float64 ``[samples]``.
        learnt: number of these tokens, int64; the first token of a sample follows none, so it is not among them.
        likeliest: how many of them the model finds likelier than all others, int64.
    """

    sums: np.ndarray
    learnt: np.ndarray
    likeliest: np.ndarray


@torch.inference_mode()
def record_losses(loaded: Loaded, samples: Sequence[Sample], seq_length: int, pad_id: int) -> RecordLosses:
    """Cross entropy of every sample, over its learnt tokens.

    Args:
        loaded: the model; all ranks of its layout make the same call.
        samples: of any lengths.
        seq_length: tokens of a row; one that is longer has a row of its own.
        pad_id: fills rows up.

    Returns:
        The same on every rank.

    Raises:
        UserError: the model has not all of the ids.
    """
    loaded.require_ids(max(int(sample.input_ids.max()) for sample in samples))
    groups = loaded.groups
    totals = np.zeros((3, len(samples)))
    lengths = np.array([len(sample) for sample in samples], np.int64)
    capacity = max(seq_length, int(lengths.max()))
    packs = best_fit(lengths, capacity, _MOST_SEGMENTS)
    device = current().torch_device
    for row in range(groups.data_rank, len(packs), groups.layout.data):
        members = packs.samples[packs.starts[row] : packs.starts[row + 1]]
        joined = _joined([samples[member] for member in members])
        batch = Packed(len(joined), pad_id, StoredBoundaries(), reset_position_ids=True).collate([joined])
        asked = batch.loss_mask != 0
        each = run_stages(
            loaded.model,
            groups,
            batch.tokens.to(device),
            batch.position_ids.to(device),
            batch.boundaries,
            labels=batch.labels.to(device),
            loss_mask=asked.float().to(device),
            each=True,
        )
        if each is None or not groups.totals_writer:
            continue
        owners = np.repeat(members, lengths[members])[asked[0].numpy()]
        losses, likeliest = each.double().cpu().numpy()
        for total, values in zip(totals, (losses, 1, likeliest), strict=True):
            np.add.at(total, owners, values)
    sums, learnt, likeliest = groups.sum_over_world(torch.from_numpy(totals).to(device)).cpu().numpy()
    return RecordLosses(sums, learnt.astype(np.int64), likeliest.astype(np.int64))


def _joined(samples: Sequence[Sample]) -> Sample:
    """One row of samples that do not see each other."""
    segments = np.repeat(np.arange(1, len(samples) + 1), [len(sample) for sample in samples]).astype(np.int32)
    ids, labels = (np.concatenate([getattr(one, name) for one in samples]) for name in ("input_ids", "labels"))
    return Sample(ids, labels, segments)
