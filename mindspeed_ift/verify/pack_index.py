"""A pack index and the dataset that it is for in, a line for each way in which they do not go together out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.pack_index import PackIndex, load_index
from mindspeed_ift.verify.report import Check


def check_index(check: Check, path: Path, prefix: str) -> None:
    """Hold an index to its rules: each sample in one row at most, rows that have room for theirs, counts as noted.

    Args:
        check: Takes the problems.
        path: Of the index.
        prefix: Of the dataset.
    """
    try:
        dataset = InstructionDataset(prefix)
        index = load_index(path, dataset)
    except UserError as error:
        check.problems.append(str(error))
        return
    lengths = np.asarray(dataset.lengths, np.int64)
    check.examined = f"{len(index.packs):,} rows, {len(index.packs.samples):,} of {len(lengths):,} samples"
    found = _why_unreadable(index, len(lengths)) or [*_wrong_samples(index, lengths), *_wrong_rows(index)]
    remedy = f"write it again with repack_dataset.py --data-path {prefix}"
    check.problems += [f"--pack-index {path}: {problem}; {remedy}" for problem in found]


def _why_unreadable(index: PackIndex, documents: int) -> list[str]:
    """What keeps one from looking at rows and samples."""
    samples, starts, taken = index.packs.samples, index.packs.starts, index.taken
    for name, array in (("samples", samples), ("starts", starts), ("taken", taken)):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            return [f"its {name} are {array.ndim}-dimensional {array.dtype}, not a list of whole numbers"]
    if len(taken) != len(samples):
        return [f"it has {len(samples):,} samples and the tokens taken of {len(taken):,}"]
    if not len(starts) or starts[0] != 0 or starts[-1] != len(samples):
        return [f"its rows do not begin at sample 0 and end at {len(samples):,}"]
    falls = np.flatnonzero(np.diff(starts.astype(np.int64)) <= 0)
    if len(falls):
        return [f"row {int(falls[0])} does not end behind its beginning ({len(falls):,} such)"]
    beyond = np.flatnonzero((samples < 0) | (samples >= documents))
    if len(beyond):
        return [f"it names sample {int(samples[beyond[0]])}, and the dataset has 0 to {documents - 1}"]
    return []


def _wrong_samples(index: PackIndex, lengths: np.ndarray) -> list[str]:
    """Samples that stand twice or are left out without a rule, and those of which a row takes other tokens than the rule
    says."""
    problems = []
    samples, taken, most = index.packs.samples, index.taken.astype(np.int64), index.rules.seq_length - 1
    times = np.bincount(samples, minlength=len(lengths))
    twice = np.flatnonzero(times > 1)
    if len(twice):
        problems.append(f"sample {int(twice[0])} stands in it {int(times[twice[0]])} times ({len(twice):,} such)")
    # Only empty samples and, if such are left out at all, those that fit no row.
    missing = np.flatnonzero(times == 0)
    lost = missing[(lengths[missing] > 0) & (lengths[missing] <= most)]
    if len(lost):
        problems.append(f"sample {int(lost[0])} stands in no row and would fit one ({len(lost):,} such)")
    if len(missing) != index.dropped_samples:
        problems.append(f"{len(missing):,} samples stand in no row, and it says {index.dropped_samples:,}")
    wrong = np.flatnonzero(taken != np.minimum(lengths[samples], most))
    if len(wrong):
        sample = int(samples[wrong[0]])
        problems.append(
            f"a row takes {int(taken[wrong[0]]):,} tokens of sample {sample}, which has {int(lengths[sample]):,}"
            f" ({len(wrong):,} such)"
        )
    cut = int(np.count_nonzero(taken < lengths[samples]))
    if cut != index.cut_samples:
        problems.append(f"{cut:,} samples are cut, and it says {index.cut_samples:,}")
    return problems


def _wrong_rows(index: PackIndex) -> list[str]:
    """Rows with more tokens, or more samples, than the rules allow."""
    problems, rules, starts = [], index.rules, index.packs.starts
    filled = np.add.reduceat(rules.spaces(index.taken), starts[:-1]) if len(index.packs) else np.zeros(0, np.int64)
    for counts, most, what in (
        (filled, rules.capacity, "tokens"),
        (np.diff(starts.astype(np.int64)), rules.max_segments - 1, "samples"),
    ):
        full = np.flatnonzero(counts > most)
        if len(full):
            row = int(full[0])
            problems.append(f"row {row} holds {int(counts[row]):,} {what}, and {most:,} fit ({len(full):,} such)")
    return problems
