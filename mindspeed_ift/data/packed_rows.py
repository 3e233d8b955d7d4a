"""Samples put together into rows of one length: every column of the documents that ``--pack`` writes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.data.indexed import DatasetWriter, report_write_errors
from mindspeed_ift.data.packing import PackRules, pack
from mindspeed_ift.data.packing_algorithms import ranges
from mindspeed_ift.data.sample import IGNORED_LABEL
from mindspeed_ift.data.workers import EncodedChunk

_TOKENS_AT_ONCE = 1 << 20


def write_packed(
    writer: DatasetWriter,
    chunks: Iterator[EncodedChunk],
    config: PreprocessConfig,
    pad_id: int,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """One document a row of several samples; the samples wait in a file, only their lengths in memory."""
    folder = config.cache_dir or os.path.dirname(config.output_prefix) or "."
    with report_write_errors(folder):
        os.makedirs(folder, exist_ok=True)
        waiting = tempfile.TemporaryDirectory(
            prefix=os.path.basename(config.output_prefix) + ".", suffix=".partial", dir=folder
        )
    with waiting as place:
        parts = {"input_ids": Path(place, "input_ids"), "labels": Path(place, "labels")}
        lengths, learnt = _store(parts, chunks)
        rules = rules_of(config)
        counts = {"samples": 0, "conversations": len(lengths), "tokens": int(lengths.sum()), "learnt_tokens": learnt}
        facts = {"packing_algorithm": rules.algorithm, "pad_to_multiple_of": rules.multiple}
        if len(lengths) == 0:
            return {**counts, **facts}
        packs = pack(lengths, rules)
        fill = counts["tokens"] / (len(packs) * rules.seq_length)
        report(f"{len(lengths):,} samples packed into {len(packs):,} rows of {rules.seq_length:,}, {fill:.1%} full")
        stored = {name: np.memmap(path, np.int32, "r") for name, path in parts.items()}
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))[:-1]
        rows_at_once = max(1, _TOKENS_AT_ONCE // rules.seq_length)
        for start in range(0, len(packs), rows_at_once):
            starts = packs.starts[start : start + rows_at_once + 1]
            samples = packs.samples[starts[0] : starts[-1]]
            rows = _rows(stored, offsets[samples], lengths[samples], starts - starts[0], rules, pad_id)
            if not config.neat_pack:
                rows["attention_mask"][:] = 1
            writer.append(rows, np.full(len(starts) - 1, rules.seq_length, np.int32))
        return {**counts, **facts, "samples": len(packs)}


def rules_of(config: PreprocessConfig) -> PackRules:
    """The rules of ``--pack``."""
    assert config.seq_length is not None
    return PackRules(
        config.seq_length, config.packing_algorithm, config.max_segments, config.pad_to_multiple_of, config.seed
    )


def _store(parts: dict[str, Path], chunks: Iterator[EncodedChunk]) -> tuple[np.ndarray, int]:
    """Write samples aside; their lengths int64 ``[samples]``, and the number of learnt tokens."""
    lengths, learnt = [np.zeros(0, np.int64)], 0
    with parts["input_ids"].open("wb") as ids, parts["labels"].open("wb") as labels:
        for chunk in chunks:
            with report_write_errors(ids.name):
                ids.write(chunk.values["input_ids"].data)
                labels.write(chunk.values["labels"].data)
            lengths.append(chunk.lengths["input_ids"].astype(np.int64))
            learnt += int(np.count_nonzero(chunk.values["labels"] != IGNORED_LABEL))
        with report_write_errors(ids.name):
            ids.flush()
            labels.flush()
    return np.concatenate(lengths), learnt


def _rows(
    stored: dict[str, np.ndarray],
    offsets: np.ndarray,
    lengths: np.ndarray,
    starts: np.ndarray,
    rules: PackRules,
    pad_id: int,
) -> dict[str, np.ndarray]:
    """Some rows of all three columns, each int32 ``[rows * seq_length]``; the mask numbers the samples of a row from 1.

    Args:
        stored: The samples that wait, one after the other.
        offsets: int64 ``[samples]``: where each sample of these rows starts there.
        lengths: int64 ``[samples]``.
        starts: int64 ``[rows + 1]``: which samples a row takes.
        rules: Length of a row, space of a sample.
        pad_id: Fills samples and rows up.
    """
    sizes, spaces = np.diff(starts), rules.spaces(lengths)
    before = np.cumsum(spaces) - spaces
    within_row = before - np.repeat(before[starts[:-1]], sizes)
    places = np.repeat(np.arange(len(sizes)), sizes) * rules.seq_length + within_row
    source, target = ranges(offsets, lengths), ranges(places, lengths)
    size = len(sizes) * rules.seq_length
    rows = {"input_ids": np.full(size, pad_id, np.int32), "labels": np.full(size, IGNORED_LABEL, np.int32)}
    for name, values in rows.items():
        values[target] = stored[name][source]
    mask = np.zeros(size, np.int32)
    mask[ranges(places, spaces)] = np.repeat(np.arange(len(lengths)) - np.repeat(starts[:-1], sizes) + 1, spaces)
    return {**rows, "attention_mask": mask}
