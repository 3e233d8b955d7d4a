"""An indexed dataset in, a table of what was checked and a line for each problem out.

``.bin`` against ``.idx`` against manifest: sizes, checksums, lengths, and every value once (about half a gigabyte a
second). A dataset without a manifest, as MindSpeed-LLM writes it, is held to what the files say of each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.indexed import WEIGHTS, IndexedColumn, column_path, manifest_path, read_manifest
from mindspeed_ift.data.ledger_file import ledger_path
from mindspeed_ift.data.sample import IGNORED_LABEL
from mindspeed_ift.data.staging import mark_of, unfinished

_VALUES_AT_ONCE = 1 << 22


@dataclass
class Check:
    """One row of the table.

    Attributes:
        name: What is checked.
        examined: How much of it.
        problems: A line each.
    """

    name: str
    examined: str = ""
    problems: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What was found.

    Attributes:
        checks: All that was checked.
        notices: What could not be, and why.
    """

    checks: list[Check] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """A line for each problem; none says that the dataset is whole."""
        return [line for check in self.checks for line in check.problems]

    def check(self, name: str) -> Check:
        """A new row."""
        self.checks.append(Check(name))
        return self.checks[-1]


def verify_dataset(prefix: str, vocab_size: int | None = None) -> Report:
    """Check a dataset.

    Args:
        prefix: ``--output-prefix`` of the dataset.
        vocab_size: Ids must be less; None takes the manifest's.

    Raises:
        UserError: There is no dataset at ``prefix``, or its manifest cannot be read.
    """
    manifest = read_manifest(prefix)
    names = _column_names(prefix, manifest)
    report = Report()
    if manifest is None:
        report.notices.append(f"no {manifest_path(prefix).name}, so there are no checksums and counts to compare with")
    else:
        _check_files(report.check("files as in the manifest"), prefix, manifest)
    columns = _open(report.check(".bin and .idx"), names)
    if len(columns) == len(names):
        _Contents(prefix, manifest or {}, columns, vocab_size, report).check()
    if manifest is not None and ledger_path(prefix).name in manifest.get("files", {}):
        _check_ledger(report.check("ledger"), prefix, manifest)
    return report


def _column_names(prefix: str, manifest: Mapping[str, Any] | None) -> dict[str, str]:
    """Column -> path without suffix, of those that the manifest names or, without one, that lie there."""
    if manifest is not None and "columns" in manifest:
        packed = [column_path(prefix, name) for name in manifest["columns"]]
        plain = [column_path(prefix, name, packed_name=False) for name in manifest["columns"]]
        found = plain if any(Path(f"{path}.idx").is_file() for path in plain) else packed
        return dict(zip(manifest["columns"], found))
    names = _columns_there(Path(prefix))
    if not names and (folder := unfinished(prefix)) is not None:
        raise UserError(f"the dataset at {prefix} is not finished ({folder}): run the same preprocess command again")
    if not names:
        raise UserError(f"no dataset at {prefix}; give the --output-prefix of preprocess_data.py")
    return names


def _columns_there(prefix: Path) -> dict[str, str]:
    """Those of instruction data, or of plain text where there are none."""
    folder, base = prefix.parent, re.escape(prefix.name)
    files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for pattern in (rf"{base}_packed_(.+)_document\.idx", rf"{base}_((?!.*_packed_).+)_document\.idx"):
        matches = [match for match in (re.fullmatch(pattern, file) for file in files) if match]
        if matches:
            return {match[1]: str(folder / match[0].removesuffix(".idx")) for match in matches}
    return {}


def _check_files(check: Check, prefix: str, manifest: Mapping[str, Any]) -> None:
    read = 0
    for name, noted in manifest.get("files", {}).items():
        file = Path(prefix).parent / name
        if not file.is_file():
            check.problems.append(f"{file} is missing; prepare or copy the dataset again")
            continue
        found = mark_of(file)
        read += found["bytes"]
        if found["bytes"] != noted["bytes"]:
            check.problems.append(
                f"{file} has {found['bytes']:,} bytes, the manifest says {noted['bytes']:,}; copy it again"
            )
        elif found["sha256"] != noted["sha256"]:
            check.problems.append(f"{file} has another sha256 than in the manifest: bytes were changed; copy it again")
    check.examined = f"{len(manifest.get('files', {}))} files, {read:,} bytes"


def _open(check: Check, names: Mapping[str, str]) -> dict[str, IndexedColumn]:
    """The columns that can be read; those that cannot are problems."""
    columns = {}
    for name, path in names.items():
        try:
            column = IndexedColumn(path)
        except UserError as error:
            check.problems.append(str(error))
            continue
        columns[name] = column
        ends = np.cumsum(column.lengths, dtype=np.int64) * column.dtype.itemsize
        expected = np.concatenate((np.zeros(1, np.int64), ends[:-1])) if len(ends) else ends
        if (column.lengths < 0).any() or not np.array_equal(column.offsets, expected):
            check.problems.append(f"{path}.idx: a document does not begin where the one before it ends")
            del columns[name]
        documents = column.documents
        # MindSpeed-LLM ends a document for each sample that it drops, so indices may stand there twice.
        if not len(documents) or documents[0] or documents[-1] != len(column) or (np.diff(documents) < 0).any():
            check.problems.append(f"{path}.idx: its document indices do not go from 0 to {len(column)}")
    check.examined = f"{len(names)} columns, {sum(len(column) for column in columns.values()):,} documents"
    return columns


@dataclass
class _Group:
    """The columns of one kind of sample: of instruction data, or of the chosen or rejected of a pair."""

    ids: IndexedColumn
    labels: IndexedColumn
    mask: IndexedColumn | None
    weights: IndexedColumn | None


class _Contents:
    """Checks every value of the columns once."""

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
        self.groups = [
            _Group(column, *(columns.get(f"{kind}{one}") for one in ("labels", "attention_mask", WEIGHTS)))
            for name, column in columns.items()
            if name.endswith("input_ids") and f"{(kind := name.removesuffix('input_ids'))}labels" in columns
        ]
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
            if name.endswith(("labels", "attention_mask", WEIGHTS)):
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


def _check_ledger(check: Check, prefix: str, manifest: Mapping[str, Any]) -> None:
    from pyarrow import ArrowException, parquet

    path = ledger_path(prefix)
    totals = {"samples": 0, "tokens": 0, "learnt_tokens": 0}
    rows = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=list(totals)):
                rows += batch.num_rows
                for name in totals:
                    totals[name] += int(batch.column(name).to_numpy().sum())
    except (OSError, ArrowException) as error:
        check.problems.append(f"{path} cannot be read ({str(error).splitlines()[0]})")
        return
    noted = manifest["ledger"]
    expected = {"samples": noted["kept"], "tokens": manifest["tokens"], "learnt_tokens": manifest["learnt_tokens"]}
    if rows != noted["read"]:
        check.problems.append(f"{path} has {rows:,} rows for {noted['read']:,} records")
    for name, count in totals.items():
        if count != expected[name]:
            check.problems.append(f"{path}: its {name} sum to {count:,}, the manifest says {expected[name]:,}")
    check.examined = f"{rows:,} records"
