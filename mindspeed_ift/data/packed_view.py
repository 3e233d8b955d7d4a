"""A dataset of single samples and a pack index in, rows out: as if the dataset had been written packed."""

from __future__ import annotations

from typing import Any

import numpy as np

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.tuning import TrainingDataFlags
from mindspeed_ift.data.dataset import InstructionDataset, Samples
from mindspeed_ift.data.pack_index import PackIndex, build_index, load_index
from mindspeed_ift.data.packing import PackRules
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample


class PackedView:
    """Row number -> `Sample`, composed from the samples of a dataset when it is asked for.

    Args:
        dataset: One sample a document.
        index: Which of them share a row.
        pad_id: Fills samples and rows up.
    """

    has_segments = True
    is_packed = True

    def __init__(self, dataset: InstructionDataset, index: PackIndex, pad_id: int) -> None:
        self.dataset = dataset
        self.index = index
        self.pad_id = pad_id
        self.prefix = dataset.prefix
        self.manifest: dict[str, Any] | None = dataset.manifest
        self.lengths: np.ndarray = np.full(len(index.packs), index.rules.seq_length, np.int32)
        """int32 ``[rows]``: all the length of a row."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> Sample:
        """A row, as ``--neat-pack`` writes it."""
        size = self.index.rules.seq_length
        ids, labels = np.full(size, self.pad_id, np.int32), np.full(size, IGNORED_LABEL, np.int32)
        segments = np.zeros(size, np.int32)
        weights = np.zeros(size, np.float32) if self.dataset.has_weights else None
        first, stop = (int(end) for end in self.index.packs.starts[number : number + 2])
        spaces = self.index.rules.spaces(self.index.taken[first:stop])
        start = 0
        for segment, space in enumerate(spaces.tolist(), 1):
            place = first + segment - 1
            part = self._part(int(self.index.packs.samples[place]), int(self.index.taken[place]))
            ids[start : start + len(part)] = part.input_ids
            labels[start : start + len(part)] = part.labels
            segments[start : start + space] = segment
            if weights is not None:
                weights[start : start + len(part)] = part.loss_weights
            start += space
        return Sample(ids, labels, segments, weights)

    def located(self, number: int) -> tuple[str, int]:
        """See `Samples.located`."""
        return self.prefix, number

    def check_fits(self, vocab_size: int) -> None:
        """See `InstructionDataset.check_fits`."""
        self.dataset.check_fits(vocab_size)

    def _part(self, number: int, taken: int) -> Sample:
        whole = self.dataset[number]
        if len(whole) == taken:
            return whole
        kept = self.index.cut.kept(whole.labels)
        assert len(kept) == taken, "the index counts other tokens than the sample has"
        return whole.part(kept)


def packed_samples(dataset: InstructionDataset, data: TrainingDataFlags, seed: int, pad_id: int) -> Samples:
    """The dataset as ``--pack`` or ``--pack-index`` asks for it.

    Args:
        dataset: As it lies on disk.
        data: Flags of the run.
        seed: Of the run.
        pad_id: Fills samples and rows up.

    Returns:
        A packed view; the dataset itself without either flag, or where ``--pack`` finds it packed already.

    Raises:
        UserError: The index does not belong to the dataset, or the samples of a row would see each other.
    """
    if data.pack_index is None and not (data.pack and not dataset.is_packed):
        return dataset
    if not data.reset_attention_mask:
        flag = "--pack" if data.pack_index is None else "--pack-index"
        raise UserError(
            f"{flag} makes rows of several samples of {dataset.prefix}, which would see each other; give"
            " --reset-attention-mask (and --reset-position-ids)"
        )
    if data.pack_index is not None:
        return PackedView(dataset, load_index(data.pack_index, dataset), pad_id)
    algorithm = data.packing_algorithm or ("balanced" if data.balance_packs else "greedy-knapsack")
    rules = PackRules(data.seq_length, algorithm, data.max_segments, seed=seed)
    return PackedView(dataset, build_index(dataset, rules, "truncate" if data.cut_token else "error"), pad_id)
