"""Datasets of a few samples, written as preprocess.py writes them, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ift.data.indexed import DatasetWriter, manifest_path
from mindspeed_ift.data.sample import Sample


def sample(ids: Sequence[int], labels: Sequence[int], segments: Sequence[int] | None = None) -> Sample:
    """A sample of plain numbers."""
    parts = (np.array(values, np.int32) for values in (ids, labels))
    return Sample(*parts, None if segments is None else np.array(segments, np.int32))


def random_sample(generator: np.random.Generator, turns: int, longest: int = 6, vocabulary: int = 50) -> Sample:
    """Prompts that are not learnt, and answers that are, with ids from 10 on."""
    ids: list[int] = []
    labels: list[int] = []
    for _ in range(turns):
        prompt, answer = (generator.integers(10, vocabulary, generator.integers(1, longest)).tolist() for _ in "ab")
        ids += prompt + answer
        labels += [-100] * len(prompt) + answer
    return sample(ids, labels)


def write_dataset(prefix: Path, samples: Sequence[Sample], manifest: dict[str, Any] | None = None) -> Path:
    """Write the three columns; without ``manifest`` as MindSpeed-LLM does, none. Returns ``prefix``."""
    with DatasetWriter(prefix, ("input_ids", "attention_mask", "labels")) as writer:
        for row in samples:
            mask = np.ones(len(row), np.int32) if row.segments is None else row.segments
            values = {"input_ids": row.input_ids, "attention_mask": mask, "labels": row.labels}
            writer.append(values, np.array([len(row)], np.int32))
        writer.commit({"format": 1, "pack": False, "neat_pack": False, **(manifest or {})})
    if manifest is None:
        manifest_path(prefix).unlink()
    return prefix
