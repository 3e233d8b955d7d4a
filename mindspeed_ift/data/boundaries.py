"""Where a packed row's samples end: stored by the packer, or read from end-of-document tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample

_ROWS_TO_INSPECT = 64


@dataclass(frozen=True)
class StoredBoundaries:
    """Boundaries as neat-pack's attention_mask stores them: a new segment wherever its value changes."""

    def ends(self, sample: Sample) -> np.ndarray:
        """Ends of the segments inside the row, int64, ascending, the last one the row's length."""
        assert sample.segments is not None
        changes = np.flatnonzero(np.diff(sample.segments)) + 1
        return np.append(changes, len(sample))


@dataclass(frozen=True)
class EndOfDocumentBoundaries:
    """Boundaries behind a mark in the tokens; what follows the last mark without a learnt label is padding.

    Attributes:
        mark: the tokens that end a document: the eod alone for text, the closing of a turn and the eod for a template
            whose turns close in that same token (``--append-eod`` leaves it).
    """

    mark: tuple[int, ...]

    def ends(self, sample: Sample) -> np.ndarray:
        """Ends of the segments inside the row, int64, ascending, the last one the row's length."""
        ids, size = sample.input_ids, len(self.mark)
        hits = np.ones(max(len(ids) - size + 1, 0), dtype=bool)
        for offset, token in enumerate(self.mark):
            hits &= ids[offset : offset + len(hits)] == token
        ends = np.flatnonzero(hits) + size
        return ends if len(ends) and ends[-1] == len(ids) else np.append(ends, len(ids))


BoundarySource = StoredBoundaries | EndOfDocumentBoundaries


def choose_boundaries(dataset: InstructionDataset, eod_id: int, turn_end_ids: Sequence[int]) -> BoundarySource:
    """How the boundaries of ``dataset`` are known.

    Args:
        dataset: packed rows.
        eod_id: the token that ``--append-eod`` puts behind a document.
        turn_end_ids: the tokens that close an assistant's turn in the template; empty for plain text.

    Raises:
        UserError: the template's turns end in the eod, and no row holds the doubled mark of ``--append-eod``.
    """
    if dataset.has_segments:
        return StoredBoundaries()
    if eod_id not in turn_end_ids:
        return EndOfDocumentBoundaries((eod_id,))
    marked = EndOfDocumentBoundaries((*turn_end_ids, eod_id))
    rows = range(min(len(dataset), _ROWS_TO_INSPECT))
    if not any(len(marked.ends(dataset[row])) > 1 for row in rows):
        raise UserError(
            f"--data-path {dataset.prefix}: the rows store no boundaries, and every turn ends in the end-of-document token "
            f"{eod_id}, so cutting there would part answers from questions; pack the data again with --neat-pack"
        )
    return marked


def learnt_positions(sample: Sample) -> int:
    """Tokens of a sample that carry a label."""
    return int((sample.labels != IGNORED_LABEL).sum())
