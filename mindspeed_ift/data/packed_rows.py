"""Samples put together into rows of one length: every column of the documents that ``--pack`` writes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.data.indexed import DatasetWriter, report_write_errors
from mindspeed_ift.data.packing import pack
from mindspeed_ift.data.sample import IGNORED_LABEL
from mindspeed_ift.data.workers import EncodedChunk

_TOKENS_AT_ONCE = 1 << 20


def write_packed(
    writer: DatasetWriter,
    chunks: Iterator[EncodedChunk],
    config: PreprocessConfig,
    pad_id: int,
    report: Callable[[str], None],
) -> dict[str, int]:
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
        counts = {"samples": 0, "conversations": len(lengths), "tokens": int(lengths.sum()), "learnt_tokens": learnt}
        if len(lengths) == 0:
            return counts
        assert config.seq_length is not None
        # One position of each row stays a pad, as MindSpeed-LLM keeps it.
        packs = pack(lengths, config.seq_length - 1)
        fill = counts["tokens"] / (len(packs) * config.seq_length)
        report(f"{len(lengths):,} samples packed into {len(packs):,} rows of {config.seq_length:,}, {fill:.1%} full")
        stored = {name: np.memmap(path, np.int32, "r") for name, path in parts.items()}
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))[:-1]
        rows_at_once = max(1, _TOKENS_AT_ONCE // config.seq_length)
        for start in range(0, len(packs), rows_at_once):
            starts = packs.starts[start : start + rows_at_once + 1]
            samples = packs.samples[starts[0] : starts[-1]]
            rows = _rows(stored, offsets[samples], lengths[samples], starts - starts[0], config, pad_id)
            writer.append(rows, np.full(len(starts) - 1, config.seq_length, np.int32))
        counts["samples"] = len(packs)
        return counts


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
    config: PreprocessConfig,
    pad_id: int,
) -> dict[str, np.ndarray]:
    """Some rows of all three columns, each int32 ``[rows * seq_length]``.

    Args:
        stored: The samples that wait, one after the other.
        offsets: int64 ``[samples]``: where each sample of these rows starts there.
        lengths: int64 ``[samples]``.
        starts: int64 ``[rows + 1]``: which samples a row takes.
        config: Length of a row, kind of packing.
        pad_id: Fills rows up.
    """
    assert config.seq_length is not None
    row_of_sample = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    before = np.cumsum(lengths) - lengths
    first_in_row = np.repeat(before[starts[:-1]], np.diff(starts))
    within = np.arange(int(lengths.sum())) - np.repeat(before, lengths)
    source = np.repeat(offsets, lengths) + within
    target = np.repeat(row_of_sample * config.seq_length + before - first_in_row, lengths) + within
    size = (len(starts) - 1) * config.seq_length
    rows = {"input_ids": np.full(size, pad_id, np.int32), "labels": np.full(size, IGNORED_LABEL, np.int32)}
    for name, values in rows.items():
        values[target] = stored[name][source]
    if config.neat_pack:
        mask = np.zeros(size, np.int32)
        mask[target] = np.repeat(np.arange(len(lengths)) - np.repeat(starts[:-1], np.diff(starts)) + 1, lengths)
    else:
        mask = np.ones(size, np.int32)
    return {**rows, "attention_mask": mask}
