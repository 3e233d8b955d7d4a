"""An indexed dataset in, a table of what was checked and a line for each problem out.

``.bin`` against ``.idx`` against manifest: sizes, checksums, lengths, and every value once (about half a gigabyte a
second). A dataset without a manifest, as MindSpeed-LLM writes it, is held to what the files say of each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ift.config.errors import UserError, first_line
from mindspeed_ift.data.indexed import IndexedColumn, column_path, manifest_path, read_manifest
from mindspeed_ift.data.ledger_file import PLACES, ledger_path
from mindspeed_ift.data.staging import mark_of, unfinished
from mindspeed_ift.data.template_certificate import KEY, check_certificate
from mindspeed_ift.verify.contents import Contents
from mindspeed_ift.verify.pack_index import check_index
from mindspeed_ift.verify.report import Check, Report


def verify_dataset(prefix: str, vocab_size: int | None = None, pack_index: Path | None = None) -> Report:
    """Check a dataset.

    Args:
        prefix: ``--output-prefix`` of the dataset.
        vocab_size: Ids must be less; None takes the manifest's.
        pack_index: Rows made of its samples, to be checked too.

    Raises:
        UserError: There is no dataset at ``prefix``, or its manifest cannot be read.
    """
    manifest = read_manifest(prefix)
    names = column_names(prefix, manifest)
    report = Report()
    if manifest is None:
        report.notices.append(f"no {manifest_path(prefix).name}, so there are no checksums and counts to compare with")
    else:
        _check_files(report.check("files as in the manifest"), prefix, manifest)
        _check_certificate(report.check("template certificate"), prefix, manifest)
    columns = _open(report.check(".bin and .idx"), names)
    if len(columns) == len(names):
        Contents(prefix, manifest or {}, columns, vocab_size, report).check()
    if manifest is not None and ledger_path(prefix).name in manifest.get("files", {}):
        documents = len(next(iter(columns.values()), ()))
        _check_ledger(report.check("ledger"), prefix, manifest, documents)
    if pack_index is not None:
        check_index(report.check("pack index"), pack_index, prefix)
    return report


def column_names(prefix: str, manifest: Mapping[str, Any] | None) -> dict[str, str]:
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


def _check_certificate(check: Check, prefix: str, manifest: Mapping[str, Any]) -> None:
    certificate = manifest.get(KEY)
    try:
        check_certificate(certificate, manifest.get("template_sha256"), f"dataset {prefix}")
    except UserError as error:
        check.problems.append(str(error))
    check.examined = (
        "there is none" if certificate is None else f"as it was given (verdict: {certificate.get('verdict')})"
    )


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


def _check_ledger(check: Check, prefix: str, manifest: Mapping[str, Any], documents: int) -> None:
    """
    Args:
        check: Takes the problems.
        prefix: Of the dataset.
        manifest: Of it.
        documents: How many it has.
    """
    from pyarrow import ArrowException, parquet

    path = ledger_path(prefix)
    totals = {"samples": 0, "tokens": 0, "learnt_tokens": 0}
    rows = 0
    try:
        with parquet.ParquetFile(path) as file:
            placed = bool(manifest.get("pack")) and set(PLACES) <= set(file.schema_arrow.names)
            for batch in file.iter_batches(columns=[*totals, *(PLACES if placed else ())]):
                for name in totals:
                    totals[name] += int(batch.column(name).to_numpy().sum())
                if placed:
                    check.problems += _misplaced(path, batch, rows, documents, manifest["seq_length"])
                rows += batch.num_rows
    except (OSError, ArrowException) as error:
        check.problems.append(f"{path} cannot be read ({first_line(error)})")
        return
    noted = manifest["ledger"]
    expected = {"samples": noted["kept"], "tokens": manifest["tokens"], "learnt_tokens": manifest["learnt_tokens"]}
    if rows != noted["read"]:
        check.problems.append(f"{path} has {rows:,} rows for {noted['read']:,} records")
    for name, count in totals.items():
        if count != expected[name]:
            check.problems.append(f"{path}: its {name} sum to {count:,}, the manifest says {expected[name]:,}")
    check.examined = f"{rows:,} records"


def _misplaced(path: Path, batch: Any, before: int, documents: int, seq_length: int) -> list[str]:
    """Samples that a ledger puts where no row is, or no token of one: a line for each column of them.

    Args:
        path: Of the ledger.
        batch: Some rows of it.
        before: Rows before these.
        documents: Rows of the dataset.
        seq_length: Of each of them.
    """
    samples, problems = batch.column("samples").to_numpy(), []
    for name, limit in zip(PLACES, (documents, seq_length)):
        numbers = batch.column(name)
        values, counts = numbers.flatten().to_numpy(), np.diff(numbers.offsets.to_numpy())
        wrong = counts != samples
        beyond = (values < 0) | (values >= limit)
        wrong[np.repeat(np.arange(len(counts)), counts)[beyond]] = True
        if wrong.any():
            problems.append(
                f"{path}: row {before + int(wrong.argmax())} has {name} that are not those of its samples"
                f" ({np.count_nonzero(wrong):,} such)"
            )
    return problems
