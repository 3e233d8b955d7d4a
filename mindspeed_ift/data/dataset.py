"""Indexed dataset -> Sample: its columns, its split, the order of its samples, and the position to resume from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.indexed import IndexedColumn, column_path, manifest_path, read_manifest
from mindspeed_ift.data.sample import Sample

_ROWS_TO_INSPECT = 64


class InstructionDataset:
    """The samples of ``<prefix>_packed_{input_ids,labels,attention_mask}_document``, read from the memory map.

    Args:
        prefix: ``--output-prefix`` of the data preparation.

    Raises:
        UserError: a missing, damaged or empty column; columns of different lengths; files that the manifest contradicts.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = str(prefix)
        if not Path(column_path(prefix, "input_ids") + ".idx").is_file():
            raise UserError(
                f"--data-path {prefix}: {column_path(prefix, 'input_ids')}.idx is missing; "
                "give the --output-prefix of preprocess_data.py, without _packed_..."
            )
        self.manifest: dict[str, Any] | None = read_manifest(prefix)
        self._check_manifest()
        self.input_ids = IndexedColumn(column_path(prefix, "input_ids"))
        self.labels = IndexedColumn(column_path(prefix, "labels"))
        self.lengths: np.ndarray = self.input_ids.lengths
        if len(self.input_ids) == 0:
            raise UserError(f"--data-path {prefix}: the dataset is empty; prepare it again and look at the ledger")
        if not np.array_equal(self.lengths, self.labels.lengths):
            raise UserError(f"--data-path {prefix}: labels and input_ids differ in length; prepare the dataset again")
        self._mask = self._segments_column()

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> Sample:
        segments = self._mask[index] if self._mask is not None else None
        return Sample(self.input_ids[index], self.labels[index], segments)

    @property
    def has_segments(self) -> bool:
        """Whether each row stores which sample a token belongs to (neat-pack)."""
        return self._mask is not None

    def check_fits(self, vocab_size: int) -> None:
        """Refuse token ids the model has no embedding for.

        Raises:
            UserError: naming the first such sample.
        """
        for index in range(len(self)):
            ids = self.input_ids[index]
            if len(ids) and (int(ids.max()) >= vocab_size or int(ids.min()) < 0):
                raise UserError(
                    f"--data-path {self.prefix}: sample {index} has token id {int(ids.max())}, the model has "
                    f"{vocab_size} rows; tokenizer and model do not belong together"
                )

    def _check_manifest(self) -> None:
        for name, facts in (self.manifest or {}).get("files", {}).items():
            path = manifest_path(self.prefix).parent / name
            size = path.stat().st_size if path.is_file() else -1
            if size != facts["bytes"]:
                raise UserError(
                    f"{path}: {'missing' if size < 0 else f'{size} bytes'}, its manifest says {facts['bytes']}; "
                    "prepare the dataset again"
                )

    def _segments_column(self) -> IndexedColumn | None:
        if not Path(column_path(self.prefix, "attention_mask") + ".idx").is_file():
            return None
        mask = IndexedColumn(column_path(self.prefix, "attention_mask"))
        if not np.array_equal(self.lengths, mask.lengths):
            raise UserError(
                f"--data-path {self.prefix}: attention_mask and input_ids differ in length; prepare it again"
            )
        if self.manifest is not None:
            return mask if self.manifest.get("neat_pack") else None
        # A dataset of others: neat-pack numbers its samples from 1, so that a second one or a pad gives it away.
        rows = range(min(len(mask), _ROWS_TO_INSPECT))
        return mask if any(len(mask[row]) and (mask[row] != 1).any() for row in rows) else None


def split_ranges(num_samples: int, split: str) -> tuple[range, range, range]:
    """Contiguous ranges of training, validation and test samples, in proportion to ``split`` (Megatron's ``--split``).

    Raises:
        UserError: not one to three numbers, negative, or all zero.
    """
    try:
        shares = [float(part) for part in split.split(",")]
    except ValueError:
        shares = []
    shares += [0.0] * (3 - len(shares))
    if len(shares) != 3 or min(shares) < 0 or sum(shares) <= 0:
        raise UserError(f"--split {split}: give three shares such as 99,1,0")
    edges = [0] + [round(num_samples * sum(shares[: part + 1]) / sum(shares)) for part in range(3)]
    train, valid, test = (range(edges[part], edges[part + 1]) for part in range(3))
    return train, valid, test


@dataclass
class SampleOrder:
    """Which sample comes at which position: a pure function of seed and position, the same in every layout.

    Attributes:
        samples: the range of the dataset to draw from; every epoch takes each once.
        seed: of the shuffles; epoch e is shuffled by (seed, e).
        shuffle: False keeps the order of the dataset.
    """

    samples: range
    seed: int
    shuffle: bool = True
    _epoch: int = -1
    _order: np.ndarray | None = None

    def index(self, position: int) -> int:
        """The dataset's sample at the position-th place since the start of training."""
        epoch, place = divmod(position, len(self.samples))
        if not self.shuffle:
            return self.samples[place]
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self.seed, epoch)).permutation(len(self.samples))
        assert self._order is not None
        return self.samples[int(self._order[place])]
