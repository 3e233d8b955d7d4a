"""Several indexed datasets in, one out: the same columns, one dataset after the other, copied as streams."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.merge import MergeConfig
from mindspeed_ift.data.indexed import (
    WEIGHTS,
    DatasetWriter,
    IndexedColumn,
    column_dtype,
    column_path,
    manifest_path,
    read_manifest,
)
from mindspeed_ift.data.learning import plain_weights
from mindspeed_ift.data.ledger import joined_account
from mindspeed_ift.data.ledger_file import join_ledgers, ledger_path
from mindspeed_ift.data.staging import report_write_errors
from mindspeed_ift.data.template_certificate import KEY as CERTIFICATE
from mindspeed_ift.data.template_certificate import check_certificate, joined

_PACKED_NAME = re.compile(r"(?P<prefix>.+)_(?P<key>packed_.+_document)")
_TEXT_NAME = re.compile(r"(?P<prefix>.+)_(?P<key>[^_]+_document)")
_BLOCK = 1 << 20
_SAME = (
    *("prompt_type", "template_sha256", "tokenizer_sha256", "pack", "neat_pack", "append_eod"),
    *("vocab_size", "eod_id", "pad_id", "turn_end_ids"),
)
"""What the manifests must agree about: how ids are read, and how rows are laid out."""
_TOTALS = ("samples", "conversations", "tokens", "learnt_tokens")
_APART = ("files", "flags", "ledger", "input", "merged", "columns", CERTIFICATE, *_TOTALS)
"""What a merged manifest does not take over from those of its parts."""
_OF_NO_MATTER = ("version", "tokenizer", "mix_strategy", "interleave_probs", "seed", "max_samples")
"""What may differ without a word: it tells where samples came from, not how they are written."""


@dataclass(frozen=True)
class MergeSummary:
    """What a merge did.

    Attributes:
        prefixes: The datasets joined, in order.
        manifest: As written; only that a part had none keeps it from the disk.
        notices: What the user should know, a line each.
        seconds: Wall time.
    """

    prefixes: tuple[str, ...]
    manifest: dict[str, Any]
    notices: tuple[str, ...]
    seconds: float


def merge(config: MergeConfig) -> MergeSummary:
    """Join datasets.

    Args:
        config: Which ones, and where to.

    Raises:
        UserError: There are none, they do not go together, or one is damaged; nothing has been written then.
        RunError: The disk is full; what was written is removed.
    """
    started = time.monotonic()
    config.check()
    found = find_columns(config)
    prefixes = next(iter(found.values()))
    columns = {
        key.removeprefix("packed_").removesuffix("_document"): [_open(f"{prefix}_{key}") for prefix in prefixes]
        for key in found
    }
    if "labels" in columns:
        columns |= _weights(columns["labels"], prefixes)
    _check_counts(columns, prefixes)
    manifests = [read_manifest(prefix) for prefix in prefixes]
    facts, notices = _facts(manifests, prefixes)
    packed_name = next(iter(found)).startswith("packed_")
    ledgers = [ledger_path(prefix) for prefix in prefixes]
    with (
        DatasetWriter(config.output_prefix, list(columns), packed_name=packed_name) as writer,
        report_write_errors(config.output_prefix),
    ):
        for name, parts in columns.items():
            for part in parts:
                for values in _values(part, name):
                    writer.columns[name].append(values, np.zeros(0, np.int32))
                writer.columns[name].append(np.zeros(0, np.int32), part.lengths)
        beside = {}
        if all(path.is_file() for path in ledgers):
            ledger = ledger_path(config.output_prefix).name
            counts = map(len, next(iter(columns.values())))
            beside[ledger] = join_ledgers(list(zip(ledgers, counts)), writer.folder / ledger)
        manifest = writer.commit({**facts, "columns": list(columns)}, beside)
        if None in manifests:
            # Whoever reads a manifest relies on it to know how the dataset was made.
            manifest_path(config.output_prefix).unlink()
    return MergeSummary(tuple(prefixes), manifest, tuple(notices), time.monotonic() - started)


def find_columns(config: MergeConfig) -> dict[str, list[str]]:
    """The datasets that ``--input`` means, by column.

    Returns:
        Name of a column's files after the prefix (``packed_labels_document``) -> prefixes, the same for all columns:
        a folder's sorted by name, others as given. ``--output-prefix`` itself is none of them.

    Raises:
        UserError: There are none, or not the same for all columns.
    """
    found: dict[str, list[str]] = defaultdict(list)
    # A name with a comma that is there is one name, as with preprocess.
    split = [part for one in config.input for part in ([one] if any(_named(Path(one), config)) else one.split(","))]
    for part in filter(None, map(str.strip, split)):
        named = list(_named(Path(part).expanduser(), config))
        if Path(part).expanduser().absolute() == Path(config.output_prefix).absolute():
            raise UserError(f"--input {part} is --output-prefix too; give the whole another name")
        if not named:
            raise _nothing_there(part, config.merge_group_keys)
        for prefix, key in named:
            if prefix not in found[key]:
                found[key].append(prefix)
    _check_complete(found, config)
    order = {prefix: place for place, prefix in enumerate(next(iter(found.values())))}
    keys = config.merge_group_keys or sorted(found, key=lambda key: ("input_ids" not in key, key))
    return {key: sorted(found[key], key=order.__getitem__) for key in keys}


def _nothing_there(part: str, keys: tuple[str, ...]) -> UserError:
    path = Path(part).expanduser()
    folder, pattern = (path, "*") if path.is_dir() else (path.parent, f"{path.name}*")
    if any(folder.glob(f"{pattern}.shard-*.json")):
        return UserError(f"--input {part}: shards, not datasets; join them by preprocess_data.py with --merge-shards")
    wanted = ", ".join(f"*_{key}.idx" for key in keys) or "*_document.idx"
    return UserError(f"--input {part}: no dataset there ({wanted}); give a folder or an --output-prefix")


def _check_complete(found: dict[str, list[str]], config: MergeConfig) -> None:
    """Refuse columns that are missing, everywhere or somewhere."""
    for key in config.merge_group_keys:
        if key not in found:
            raise UserError(f"--merge-group-keys {key}: no dataset of --input has *_{key}.idx")
    if len({key.startswith("packed_") for key in found}) > 1:
        raise UserError(
            f"--input {' '.join(config.input)} holds instruction data and plain text; name the columns of one by"
            " --merge-group-keys"
        )
    every = {prefix for prefixes in found.values() for prefix in prefixes}
    for key, prefixes in found.items():
        lacking = sorted(every - set(prefixes))
        if lacking:
            raise UserError(
                f"{lacking[0]}_{key}.idx is missing, and others have it; copy it, or leave that dataset out"
            )


def _named(part: Path, config: MergeConfig) -> Iterator[tuple[str, str]]:
    """(prefix, key) of every column in a folder, or of one prefix, sorted by file name."""
    folder, pattern = (part, "*") if part.is_dir() else (part.parent, part.name)
    own = Path(config.output_prefix).absolute()
    for file in sorted(folder.glob(f"{pattern}_*.idx")):
        for prefix, key in _split_name(file.stem, config.merge_group_keys):
            if fnmatch(prefix, pattern) and (folder / prefix).absolute() != own:
                yield str(folder / prefix), key


def _split_name(name: str, keys: tuple[str, ...]) -> list[tuple[str, str]]:
    if keys:
        return [(name.removesuffix(f"_{key}"), key) for key in keys if name.endswith(f"_{key}")]
    match = _PACKED_NAME.fullmatch(name) or _TEXT_NAME.fullmatch(name)
    # Weights go with the labels, where there are some.
    return [(match["prefix"], match["key"])] if match and not name.endswith(f"_{WEIGHTS}_document") else []


def _open(path: str) -> IndexedColumn:
    """A column that can be copied as it stands: documents of one sequence each, in the order of the file."""
    column = IndexedColumn(path)
    if column.dtype.itemsize > np.dtype(np.int32).itemsize:
        raise UserError(f"{path}.bin holds {column.dtype.name}, which the int32 of a dataset cannot hold")
    ends = np.cumsum(column.lengths, dtype=np.int64) * column.dtype.itemsize
    if not np.array_equal(column.offsets, ends - column.lengths * column.dtype.itemsize):
        raise UserError(f"{path}.idx does not take its documents one after the other; prepare the dataset again")
    # MindSpeed-LLM repeats the number of a document where it dropped a sample.
    if not np.array_equal(np.unique(column.documents), np.arange(len(column) + 1)):
        raise UserError(f"{path}.idx has documents of several sequences (split into sentences?), which are not joined")
    return column


def _check_counts(columns: dict[str, list[IndexedColumn]], prefixes: list[str]) -> None:
    for number, prefix in enumerate(prefixes):
        counts = {name: len(parts[number]) for name, parts in columns.items()}
        if len(set(counts.values())) > 1 and "input_ids" in columns:
            told = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise UserError(f"dataset {prefix} has {told}: not of one run; prepare or copy it again")


def _weights(labels: list[IndexedColumn], prefixes: list[str]) -> dict[str, list[IndexedColumn]]:
    """The column of weights if some part has one; the labels stand for that of a part in which all count alike."""
    paths = [column_path(prefix, WEIGHTS) for prefix in prefixes]
    there = [Path(f"{path}.idx").is_file() for path in paths]
    if not any(there):
        return {}
    return {WEIGHTS: [_open(path) if is_file else alike for path, is_file, alike in zip(paths, there, labels)]}


def _values(column: IndexedColumn, name: str) -> Iterator[np.ndarray]:
    makes_weights = name == WEIGHTS and column.dtype != column_dtype(WEIGHTS)
    with open(f"{column.path}.bin", "rb") as file:
        while len(block := np.fromfile(file, column.dtype, _BLOCK)):
            yield plain_weights(block) if makes_weights else block


def _facts(manifests: list[dict[str, Any] | None], prefixes: list[str]) -> tuple[dict[str, Any], list[str]]:
    """What the manifest of the whole says, and notices.

    Raises:
        UserError: Two parts were not made alike.
    """
    for prefix, manifest in zip(prefixes, manifests):
        if manifest is not None:
            check_certificate(manifest.get(CERTIFICATE), manifest.get("template_sha256"), f"dataset {prefix}")
    known = {prefix: manifest for prefix, manifest in zip(prefixes, manifests) if manifest is not None}
    for prefix in list(known)[1:]:
        _check_alike(next(iter(known)), prefix, known)
    facts: dict[str, Any] = {"format": 1, "merged": prefixes}
    unknown = [prefix for prefix in prefixes if prefix not in known]
    if unknown:
        return facts, [
            f"no manifest beside {', '.join(unknown)} (made by MindSpeed-LLM?): whether tokenizer and template are the"
            " same for all cannot be checked, and the whole has no manifest either"
        ]
    made = list(known.values())
    alike, differing = _compare(made)
    told = "; ".join(f"{key}: {', '.join(_values_of(key, made))}" for key in differing)
    notices = [f"not the same for all, so not in the manifest: {told}"] if told else []
    return facts | alike | _totals(made), notices


def _totals(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of all of them together, and their input."""
    counts = {key: sum(one[key] for one in manifests) for key in _TOTALS if all(key in one for one in manifests)}
    found = {**counts, "input": [file for one in manifests for file in one.get("input", [])]}
    if all("ledger" in one for one in manifests):
        found["ledger"] = joined_account([one["ledger"] for one in manifests])
    certificate = joined([one.get(CERTIFICATE) for one in manifests])
    if certificate is not None:
        found[CERTIFICATE] = certificate
    return found


def _compare(manifests: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """What all of them say, and what only some do."""
    first = manifests[0]
    every = dict.fromkeys(key for one in manifests for key in one if key not in _APART)
    alike = {key for key in first if all(key in one and one[key] == first[key] for one in manifests)}
    return {key: first[key] for key in every if key in alike}, [
        key for key in every if key not in alike and key not in _OF_NO_MATTER
    ]


def _check_alike(first: str, other: str, manifests: dict[str, dict[str, Any]]) -> None:
    of_first, of_other = manifests[first], manifests[other]
    same = (*_SAME, *(("seq_length",) if of_first.get("pack") else ()))
    for key in same:
        mine, theirs = (_values_of(key, [one])[0] for one in (of_first, of_other))
        if of_first.get(key) != of_other.get(key):
            raise UserError(
                f"{first} and {other} do not go together: {key} is {mine} and {theirs} ({manifest_path(other)}); prepare"
                " both with the same flags"
            )


def _values_of(key: str, manifests: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(one.get(key))[:40] for one in manifests))
