"""Samples put together into rows of one length: every column of the documents that ``--pack`` writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.data.indexed import WEIGHTS, DatasetWriter, IndexedColumn
from mindspeed_ift.data.packing import PackRules, Places, describe_packs, pack, places_in
from mindspeed_ift.data.packing_algorithms import ranges
from mindspeed_ift.data.sample import IGNORED_LABEL
from mindspeed_ift.data.staging import require_space

_TOKENS_AT_ONCE = 1 << 20
_BYTES_OF_A_TOKEN = 12
"""Its id, label and mask, int32 each."""


def write_packed(
    writer: DatasetWriter,
    stored: Mapping[str, IndexedColumn],
    config: PreprocessConfig,
    pad_id: int,
    report: Callable[[str], None],
) -> tuple[dict[str, Any], Places]:
    """One document a row of several samples.

    Args:
        writer: Of the rows.
        stored: ``input_ids`` and ``labels`` of the samples, a document each, and `WEIGHTS` if there are some.
        config: Length of a row, kind of packing.
        pad_id: Fills samples and rows up.
        report: Takes a line that says how full the rows are.

    Returns:
        ``samples``, which is the number of rows, and the rules by which they were packed; and where each sample stands.
    """
    lengths = stored["input_ids"].lengths.astype(np.int64)
    rules = rules_of(config)
    packs = pack(lengths, rules)
    report(describe_packs(packs, int(lengths.sum()), rules))
    places = places_in(packs, lengths, rules)
    require_space(writer.folder, len(packs) * rules.seq_length * _BYTES_OF_A_TOKEN)
    values = {name: column.values for name, column in stored.items()}
    offsets = np.cumsum(lengths) - lengths
    rows_at_once = max(1, _TOKENS_AT_ONCE // rules.seq_length)
    for start in range(0, len(packs), rows_at_once):
        starts = packs.starts[start : start + rows_at_once + 1]
        samples = packs.samples[starts[0] : starts[-1]]
        positions = places.positions[samples].astype(np.int64)
        rows = _rows(values, offsets[samples], lengths[samples], positions, starts - starts[0], rules, pad_id)
        if not config.neat_pack:
            rows["attention_mask"][:] = 1
        writer.append(rows, np.full(len(starts) - 1, rules.seq_length, np.int32))
    counts = {"samples": len(packs), "packing_algorithm": rules.algorithm, "pad_to_multiple_of": rules.multiple}
    return counts, places


def rules_of(config: PreprocessConfig) -> PackRules:
    """The rules of ``--pack``."""
    assert config.seq_length is not None
    return PackRules(
        config.seq_length, config.packing_algorithm, config.max_segments, config.pad_to_multiple_of, config.seed
    )


def _rows(
    stored: dict[str, np.ndarray],
    offsets: np.ndarray,
    lengths: np.ndarray,
    positions: np.ndarray,
    starts: np.ndarray,
    rules: PackRules,
    pad_id: int,
) -> dict[str, np.ndarray]:
    """Some rows of all columns, each ``[rows * seq_length]``; the mask numbers the samples of a row from 1.

    Args:
        stored: The samples that wait, one after the other.
        offsets: int64 ``[samples]``: where each sample of these rows starts there.
        lengths: int64 ``[samples]``.
        positions: int64 ``[samples]``: where each sample starts in its row.
        starts: int64 ``[rows + 1]``: which samples a row takes.
        rules: Length of a row, space of a sample.
        pad_id: Fills samples and rows up.
    """
    sizes, spaces = np.diff(starts), rules.spaces(lengths)
    places = np.repeat(np.arange(len(sizes)), sizes) * rules.seq_length + positions
    source, target = ranges(offsets, lengths), ranges(places, lengths)
    size = len(sizes) * rules.seq_length
    rows = {"input_ids": np.full(size, pad_id, np.int32), "labels": np.full(size, IGNORED_LABEL, np.int32)}
    if WEIGHTS in stored:
        rows[WEIGHTS] = np.zeros(size, np.float32)
    for name, values in rows.items():
        values[target] = stored[name][source]
    mask = np.zeros(size, np.int32)
    mask[ranges(places, spaces)] = np.repeat(np.arange(len(lengths)) - np.repeat(starts[:-1], sizes) + 1, spaces)
    return {**rows, "attention_mask": mask}
