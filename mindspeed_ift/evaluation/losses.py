"""The loss of each record, with several of them in a row for speed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mindspeed_ift.data.batch import Packed
from mindspeed_ift.data.boundaries import StoredBoundaries
from mindspeed_ift.data.packing_algorithms import best_fit
from mindspeed_ift.data.sample import Sample
from mindspeed_ift.devices.device import current
from mindspeed_ift.model.build import Qwen3Model

_MOST_SEGMENTS = 1024


@torch.inference_mode()
def record_losses(
    model: Qwen3Model, samples: Sequence[Sample], seq_length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cross entropy of every sample, over its learnt tokens.

    Args:
        model: whole, in this process, in evaluation mode.
        samples: of any lengths.
        seq_length: tokens of a row; one that is longer has a row of its own.
        pad_id: fills rows up.

    Returns:
        Loss sums in nats, float64 ``[samples]``, and learnt tokens, int64 ``[samples]`` (the first token of a sample
        follows none, so it is not among them).
    """
    losses, learnt = np.zeros(len(samples)), np.zeros(len(samples), np.int64)
    lengths = np.array([len(sample) for sample in samples], np.int64)
    capacity = max(seq_length, int(lengths.max()))
    packs = best_fit(lengths, capacity, _MOST_SEGMENTS)
    device = current().torch_device
    for row in range(len(packs)):
        members = packs.samples[packs.starts[row] : packs.starts[row + 1]]
        joined = _joined([samples[member] for member in members])
        batch = Packed(len(joined), pad_id, StoredBoundaries(), reset_position_ids=True).collate([joined])
        asked = batch.loss_mask != 0
        each = model(
            batch.tokens.to(device),
            batch.position_ids.to(device),
            batch.boundaries,
            labels=batch.labels.to(device),
            loss_mask=asked.float().to(device),
            each=True,
        )
        owners = np.repeat(members, lengths[members])[asked[0].numpy()]
        np.add.at(losses, owners, each.double().cpu().numpy())
        np.add.at(learnt, owners, 1)
    return losses, learnt


def _joined(samples: Sequence[Sample]) -> Sample:
    """One row of samples that do not see each other."""
    segments = np.repeat(np.arange(1, len(samples) + 1), [len(sample) for sample in samples]).astype(np.int32)
    ids, labels = (np.concatenate([getattr(one, name) for one in samples]) for name in ("input_ids", "labels"))
    return Sample(ids, labels, segments)
