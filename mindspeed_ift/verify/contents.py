"""Columns of an indexed dataset in, a line for each kind of wrong value out: every value is read once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindspeed_ift.data.indexed import WEIGHTS, IndexedColumn
from mindspeed_ift.data.sample import IGNORED_LABEL
from mindspeed_ift.verify.report import Check, Report

_VALUES_AT_ONCE = 1 << 22


@dataclass
class _Group:
    """The columns of one kind of sample: of instruction data, or of the chosen or rejected of a pair."""

    ids: IndexedColumn
    labels: IndexedColumn
    mask: IndexedColumn | None
    weights: IndexedColumn | None


class Contents:
    """Checks every value of the columns once.

    Args:
        prefix: Of the dataset.
        manifest: Of it; empty for one without.
        columns: Of it, by name.
        vocab_size: Ids must be less; None takes the manifest's.
        report: Takes what is found.
    """

    def __init__(
        self,
        prefix: str,
        manifest: Mapping[str, Any],
        columns: Mapping[str, IndexedColumn],
        vocab_size: int | None,
        report: Report,
    ) -> None:
        self.prefix, self.manifest, self.columns, self.report = prefix, manifest, columns, report
        self.vocab_size = vocab_size or manifest.get("vocab_size")
        prompts = manifest.get("learnt_tokens") == 0
        self.groups = (
            []
            if prompts
            else [
                _Group(column, *(columns.get(f"{kind}{one}") for one in ("labels", "attention_mask", WEIGHTS)))
                for name, column in columns.items()
                if name.endswith("input_ids") and f"{(kind := name.removesuffix('input_ids'))}labels" in columns
            ]
        )
        self.learnt = self.segments = 0
        self.neat = bool(manifest.get("neat_pack", False))
        self.end, self.pad = manifest.get("eod_id"), manifest.get("pad_id")

    def check(self) -> None:
        """Add rows to the report."""
        lengths = self.report.check("lengths")
        self._check_lengths(lengths)
        ids = self.report.check("ids")
        self._check_ids(ids)
        if self.vocab_size is None:
            self.report.notices.append("the vocabulary is not known: give --tokenizer-name-or-path to check the ids")
        if not self.groups or lengths.problems:
            return
        labels, masks = self.report.check("labels"), self.report.check("attention_mask and pads")
        for group in self.groups:
            self._check_group(group, labels, masks)
        if self.manifest:
            self._check_counts(self.report.check("counts as in the manifest"))
        if not self.learnt:
            labels.problems.append(f"{self.prefix}: no label is learnt")

    def _check_lengths(self, check: Check) -> None:
        first = next(iter(self.columns.values()))
        for group in self.groups:
            for other in (group.labels, group.mask, group.weights):
                if other is not None and not np.array_equal(other.lengths, group.ids.lengths):
                    check.problems.append(
                        f"{other.path} and {group.ids.path} have documents of other lengths: they are not of one run"
                    )
        limit, packed = self.manifest.get("seq_length"), self.manifest.get("pack")
        for column in self.columns.values() if limit else ():
            wrong = column.lengths != limit if packed else column.lengths >= limit
            if wrong.any():
                document = int(wrong.argmax())
                check.problems.append(
                    f"{column.path}: document {document} has {column.lengths[document]} tokens, with --seq-length"
                    f" {limit}{' --pack' if packed else ''} ({np.count_nonzero(wrong):,} such)"
                )
        if not len(first):
            check.problems.append(f"{self.prefix} holds no documents; prepare it again from records that are kept")
        check.examined = f"{len(first):,} documents, {int(first.lengths.max(initial=0)):,} the longest"

    def _check_ids(self, check: Check) -> None:
        count = 0
        for name, column in self.columns.items():
            if name.endswith(("labels", "attention_mask", WEIGHTS)) and self.groups:
                continue
            count += len(column.values)
            found = _Finding(column, "id {value}, which is none of the vocabulary")
            for start, block in _blocks(column.values):
                wrong = block < 0
                if self.vocab_size is not None:
                    wrong |= block >= self.vocab_size
                found.add(start, wrong, block)
            check.problems += found.lines()
        below = "" if self.vocab_size is None else f", all below {self.vocab_size:,}"
        check.examined = f"{count:,} ids" + ("" if check.problems else below)

    def _check_group(self, group: _Group, labels_check: Check, mask_check: Check) -> None:
        self.neat = self.neat or (not self.manifest and group.mask is not None and _holds_other_than_ones(group.mask))
        labels = _Finding(group.labels, "label {value} where the id is another")
        masks = _Finding(group.mask or group.ids, self._mask_fault)
        pads = _Finding(group.ids, "id {value} where a pad must be, or a pad that is learnt")
        weights = _Finding(group.weights or group.labels, "weight {value} where nothing, or all, is learnt")
        count = 0
        for start, stop, first in _document_blocks(group.ids):
            ids, marks = group.ids.values[start:stop], group.labels.values[start:stop]
            labels.add(start, self._mislabelled(ids, marks), marks)
            self.learnt += int(np.count_nonzero(marks != IGNORED_LABEL))
            if group.weights is not None:
                shares = group.weights.values[start:stop]
                weights.add(
                    start, ~np.isfinite(shares) | (shares < 0) | ((shares > 0) != (marks != IGNORED_LABEL)), shares
                )
            if group.mask is None:
                continue
            mask = group.mask.values[start:stop]
            masks.add(start, _misnumbered(mask, first) if self.neat else mask != 1, mask)
            if self.neat:
                self.segments += int(np.maximum.reduceat(mask, np.flatnonzero(first)).sum())
            blank = self._must_be_pads(mask, first)
            if blank.any():
                self.pad = int(ids[blank][0]) if self.pad is None else self.pad
                pads.add(start, blank & ((ids != self.pad) | (marks != IGNORED_LABEL)), ids)
                count += int(np.count_nonzero(blank))
        labels_check.problems += labels.lines() + weights.lines()
        mask_check.problems += masks.lines() + pads.lines()
        labels_check.examined = f"{self.learnt:,} learnt, each its own id"
        kind = "samples numbered in each row" if self.neat else "all ones"
        mask_check.examined = "none stored" if group.mask is None else f"{kind}, {count:,} pads"

    def _mislabelled(self, ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Where a label is neither ignored nor the id of its place: bool ``[n]``.

        Some templates learn the end of an answer at the first token of the next prompt; that is one id for all.
        """
        wrong = (labels != IGNORED_LABEL) & (labels != ids)
        if wrong.any():
            self.end = int(labels[wrong][0]) if self.end is None else self.end
            wrong &= labels != self.end
        return wrong

    def _must_be_pads(self, mask: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Where a pad must stand: bool ``[n]``. One at least ends each packed row."""
        if self.neat:
            return mask == 0
        return np.append(first[1:], True) if self.manifest.get("pack") else np.zeros(len(mask), bool)

    @property
    def _mask_fault(self) -> str:
        return (
            "mask {value} out of order: samples count 1, 2, ... and pads are 0" if self.neat else "mask {value}, not 1"
        )

    def _check_counts(self, check: Check) -> None:
        first = next(iter(self.columns.values()))
        found = {"samples": len(first), "learnt_tokens": self.learnt}
        if self.neat and self.segments:
            found["conversations"] = self.segments
        if not self.manifest.get("pack"):
            found["tokens"] = sum(len(group.ids.values) for group in self.groups)
        for name, count in found.items():
            noted = self.manifest.get(name, count)
            if noted != count:
                check.problems.append(f"{self.prefix}: {count:,} {name} in the columns, {noted:,} in the manifest")
        check.examined = ", ".join(f"{count:,} {name}" for name, count in found.items())


class _Finding:
    """Values that are wrong in the same way: how many, and where the first stands."""

    def __init__(self, column: IndexedColumn, fault: str) -> None:
        self.column, self.fault = column, fault
        self.count, self.position, self.value = 0, 0, 0

    def add(self, start: int, wrong: np.ndarray, values: np.ndarray) -> None:
        """Count the wrong ones of a block that begins at position ``start``."""
        if wrong.any():
            if not self.count:
                place = int(wrong.argmax())
                self.position, self.value = start + place, values[place].item()
            self.count += int(np.count_nonzero(wrong))

    def lines(self) -> list[str]:
        """None or one."""
        if not self.count:
            return []
        offset = self.position * self.column.dtype.itemsize
        document = int(np.searchsorted(self.column.offsets, offset, side="right")) - 1
        place = self.position - int(self.column.offsets[document]) // self.column.dtype.itemsize
        fault = self.fault.format(value=self.value)
        more = f" ({self.count:,} such)" if self.count > 1 else ""
        return [f"{self.column.path}: document {document}, position {place}: {fault}{more}"]


def _blocks(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(values), _VALUES_AT_ONCE):
        yield start, values[start : start + _VALUES_AT_ONCE]


def _document_blocks(column: IndexedColumn) -> Iterator[tuple[int, int, np.ndarray]]:
    """Blocks of whole documents: begin, end, and bool ``[n]``, where in it a document begins."""
    starts = column.offsets // column.dtype.itemsize
    ends = starts + column.lengths
    document = 0
    while document < len(column):
        last = max(int(np.searchsorted(ends, starts[document] + _VALUES_AT_ONCE, side="right")), document + 1)
        start, stop = int(starts[document]), int(ends[last - 1])
        first = np.zeros(stop - start, bool)
        first[starts[document:last][column.lengths[document:last] > 0] - start] = True
        document = last
        if stop > start:
            yield start, stop, first


def _misnumbered(mask: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Where neat-pack's numbers are not 1, 2, ..., k and then 0: bool ``[n]``."""
    wrong = mask < 0
    wrong |= first & (mask != 1)
    step = mask[1:] - mask[:-1]
    goes_on = ((step == 0) | (step == 1)) & (mask[:-1] > 0) | (mask[1:] == 0)
    wrong[1:] |= ~first[1:] & ~goes_on
    return wrong


def _holds_other_than_ones(mask: IndexedColumn) -> bool:
    return any((block != 1).any() for _, block in _blocks(mask.values))
