"""Where the samples of a packed row begin and end: stored by the packer, or read from end-of-document tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.dataset import INSPECTED_ROWS, Samples
from mindspeed_ift.data.encode import CUT_NOTE
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample

PAD_SEGMENT = 0


class BoundarySource(Protocol):
    """Tells the samples of a packed row apart."""

    def segments(self, sample: Sample) -> np.ndarray:
        """int ``[n]``: tokens of one sample have one number, neighbours another; `PAD_SEGMENT` for pads."""
        ...


@dataclass(frozen=True)
class StoredBoundaries:
    """Neat-pack's attention_mask column: 1..k for the samples of a row, 0 for its pads."""

    def segments(self, sample: Sample) -> np.ndarray:
        """See `BoundarySource`."""
        assert sample.segments is not None, "the dataset stores no boundaries"
        return sample.segments


@dataclass(frozen=True)
class WholeRow:
    """One sample a row: the dataset is known not to be packed."""

    def segments(self, sample: Sample) -> np.ndarray:
        """See `BoundarySource`."""
        return np.ones(len(sample), np.int32)


@dataclass(frozen=True)
class EndOfDocument:
    """A sample ends with a mark of one or more tokens; what stands after the last mark is the rest, then pads.

    Attributes:
        mark: Token ids that end a sample.
        learnt: The last token of a mark is learnt. ``--append-eod`` learns it, whereas pads with the same id are not.
    """

    mark: tuple[int, ...]
    learnt: bool

    def segments(self, sample: Sample) -> np.ndarray:
        """See `BoundarySource`."""
        ends, run = self.ends(sample), _last_run(sample)
        # Pads may have the id of the mark: at most one mark then ends within their run, that of an unlearnt document.
        ends = ends[ends <= (run if run in ends else run + 1)]
        begins = np.zeros(len(sample) + 1, np.int32)
        begins[ends] = 1
        segments = np.cumsum(begins[:-1], dtype=np.int32) + 1
        if len(ends) and ends[-1] >= run:
            segments[ends[-1] :] = PAD_SEGMENT
        return segments

    def is_marked(self, sample: Sample) -> bool:
        """Whether a mark stands in this row, pads apart."""
        return bool((self.ends(sample) <= _last_run(sample)).any())

    def ends(self, sample: Sample) -> np.ndarray:
        """int64 ``[k]``: positions just after each mark."""
        found = spelled(sample.input_ids, self.mark)
        if self.learnt:
            found &= sample.labels[len(self.mark) - 1 :] != IGNORED_LABEL
        return np.flatnonzero(found) + len(self.mark)


def spelled(ids: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """Where these tokens stand one after the other: bool ``[n - len(tokens) + 1]``, empty for fewer ids than tokens."""
    count = max(len(ids) - len(tokens) + 1, 0)
    found = np.ones(count, bool)
    for place, token in enumerate(tokens):
        found &= ids[place : count + place] == token
    return found


def choose_boundaries(dataset: Samples, eod_id: int, turn_end_ids: Sequence[int]) -> BoundarySource:
    """How to tell the samples of this dataset's rows apart.

    Stored boundaries where there are some. Otherwise after each end-of-document token; where the template's turns end
    in that token, cutting at each would part answers from their questions, so there only the mark that
    ``--append-eod`` leaves counts: an end of turn with the token directly after it.

    Args:
        dataset: The dataset.
        eod_id: End-of-document token.
        turn_end_ids: Token ids that close an answer in the template; empty for plain text.

    Raises:
        UserError: The dataset is packed and its boundaries cannot be found.
    """
    if dataset.has_segments:
        return StoredBoundaries()
    manifest = dataset.manifest
    if manifest is not None and not manifest["pack"] and turn_end_ids:
        return WholeRow()
    ambiguous = eod_id in turn_end_ids
    source = EndOfDocument((*turn_end_ids, eod_id) if ambiguous else (eod_id,), learnt=ambiguous)
    remedy = "prepare it again with --neat-pack, which stores them, or leave out --reset-attention-mask"
    cut = 0 if manifest is None else manifest.get("ledger", {}).get("noted", {}).get(CUT_NOTE, {}).get("count", 0)
    if ambiguous and cut:
        raise UserError(
            f"dataset {dataset.prefix}: {cut} of its samples were cut and end without the mark that shows where a"
            f" packed sample ends; {remedy}"
        )
    rows = [dataset[number] for number in range(min(len(dataset), INSPECTED_ROWS))]
    if any(source.is_marked(row) for row in rows) or all(_answers(row.labels) <= 1 for row in rows):
        return source
    raise UserError(
        f"dataset {dataset.prefix} does not say where the samples of a packed row end (no boundaries stored, no"
        f" end-of-document token between samples); {remedy}"
    )


def _answers(labels: np.ndarray) -> int:
    """Number of runs of learnt tokens."""
    learnt = labels != IGNORED_LABEL
    return int(np.count_nonzero(learnt[1:] & ~learnt[:-1])) + int(learnt[:1].any())


def _last_run(sample: Sample) -> int:
    """Where the tokens begin that end a row, are all of one id and not learnt (as pads are); else its length."""
    if not len(sample):
        return 0
    other = np.flatnonzero((sample.input_ids != sample.input_ids[-1]) | (sample.labels != IGNORED_LABEL))
    return int(other[-1]) + 1 if len(other) else 0
