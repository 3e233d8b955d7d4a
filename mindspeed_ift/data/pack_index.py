"""Lengths of a dataset in, a pack index out and back: which samples share a row, in a small file beside the dataset.

Tokens are neither read nor written, so a dataset of one sample a document can be packed at any length in milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mindspeed_ift.config.errors import UserError, first_line
from mindspeed_ift.data.dataset import InstructionDataset
from mindspeed_ift.data.indexed import column_path
from mindspeed_ift.data.overlong import RowCut
from mindspeed_ift.data.packing import PackRules, describe_packs, pack
from mindspeed_ift.data.packing_algorithms import Packs
from mindspeed_ift.data.staging import report_write_errors
from mindspeed_ift.data.template_choice import get_template
from mindspeed_ift.data.templates import Rules

Overflow = Literal["truncate", "drop", "error"]
_FORMAT = 1


@dataclass(frozen=True)
class PackIndex:
    """Rows made of the samples of a dataset.

    Attributes:
        rules: How they were made.
        cut: How samples that fit no row are cut.
        packs: Which samples stand in which row (``samples`` as int32).
        taken: int32 ``[samples of packs]``: tokens of each that a row takes, in the order of ``packs.samples``.
        dataset: Fingerprint of the dataset.
        cut_samples: How many samples are cut.
        dropped_samples: How many are in no row.
    """

    rules: PackRules
    cut: RowCut
    packs: Packs
    taken: np.ndarray
    dataset: str
    cut_samples: int
    dropped_samples: int

    def describe(self) -> str:
        """One line."""
        text = describe_packs(self.packs, int(self.taken.sum()), self.rules)
        for count, what in ((self.cut_samples, "cut to fit a row"), (self.dropped_samples, "left out: too long")):
            text += f"; {count:,} {what}" if count else ""
        return text

    def facts(self) -> dict[str, Any]:
        """What decides the rows, as JSON."""
        return {
            "format": _FORMAT,
            "dataset": self.dataset,
            "rules": asdict(self.rules),
            "cut": {**asdict(self.cut), "rules": self.cut.rules.value},
            "dropped_samples": self.dropped_samples,
        }

    def path(self, prefix: str) -> Path:
        """Where the index of the dataset at ``prefix`` lies unless another place is asked for."""
        fingerprint = hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()
        return Path(f"{prefix}.pack_{self.rules.seq_length}_{fingerprint[:12]}.npz")

    def save(self, path: Path) -> None:
        """Write it, aside first.

        Raises:
            UserError: It cannot be written there, or something else than an index would be lost.
        """
        if path.is_file() and not _is_index(path):
            raise UserError(f"--output {path} is there and is no pack index; give another name")
        aside = Path(f"{path}.{os.getpid()}.partial")
        with report_write_errors(path, "--output"):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with aside.open("wb") as file:
                    facts = {**self.facts(), "cut_samples": self.cut_samples}
                    arrays = {"samples": self.packs.samples, "starts": self.packs.starts, "taken": self.taken}
                    np.savez(file, facts=np.array(json.dumps(facts)), **arrays)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(aside, path)
            finally:
                aside.unlink(missing_ok=True)


def build_index(dataset: InstructionDataset, rules: PackRules, overflow: Overflow = "truncate") -> PackIndex:
    """Pack the samples of a dataset, as ``preprocess_data.py --pack --neat-pack`` packs those that it writes.

    Args:
        dataset: One sample a document.
        rules: How rows are made.
        overflow: What becomes of samples that fit no row: cut as with ``--neat-pack``, left out, or refused.

    Raises:
        UserError: The dataset is packed already, no sample is left, or one is too long and is not to be cut.
    """
    if dataset.is_packed:
        raise UserError(
            f"dataset {dataset.prefix} is packed already, and only single samples can be packed; prepare it without"
            " --pack"
        )
    lengths = np.asarray(dataset.lengths, np.int64)
    if overflow == "error" and (lengths >= rules.seq_length).any():
        number, longest = int((lengths >= rules.seq_length).argmax()), int(lengths.max())
        raise UserError(
            f"dataset {dataset.prefix}: sample {number} has {lengths[number]} tokens, and a row of --seq-length"
            f" {rules.seq_length} takes {rules.seq_length - 1}; give {longest + 1}, or have such samples cut or left out"
        )
    cut = _cut_of(dataset, rules.seq_length)
    # A sample that is cut always fills what a row takes: its last turn gets all the room that those before it leave.
    taken = np.minimum(lengths, rules.seq_length - 1)
    too_long = lengths > taken
    numbers = np.flatnonzero((lengths > 0) & ~too_long if overflow == "drop" else lengths > 0)
    if not len(numbers):
        raise UserError(f"dataset {dataset.prefix}: no sample is left to pack; give a larger --seq-length")
    packs = pack(taken[numbers], rules)
    samples = numbers[packs.samples]
    return PackIndex(
        rules,
        cut,
        Packs(samples.astype(np.int32), packs.starts),
        taken[samples].astype(np.int32),
        fingerprint(dataset.prefix),
        cut_samples=int((taken[samples] < lengths[samples]).sum()),
        dropped_samples=len(lengths) - len(numbers),
    )


def load_index(path: Path, dataset: InstructionDataset) -> PackIndex:
    """Read an index that was written for this dataset.

    Raises:
        UserError: There is none, it cannot be read, or the dataset is another than it was written for.
    """
    remedy = f"write it with repack_dataset.py --data-path {dataset.prefix}"
    if not path.is_file():
        raise UserError(f"--pack-index {path}: no such file; {remedy}")
    if not zipfile.is_zipfile(path):  # numpy would take it for something worse
        raise UserError(f"--pack-index {path} is no pack index, or cut off; {remedy}")
    try:
        with np.load(path, allow_pickle=False) as file:
            facts = json.loads(str(file["facts"]))
            samples, starts, taken = file["samples"], file["starts"], file["taken"]
        if facts["format"] != _FORMAT:
            raise UserError(f"--pack-index {path} is of another version; {remedy}")
        rules, cut = PackRules(**facts["rules"]), facts["cut"]
        cut = RowCut(cut["seq_length"], Rules(cut["rules"]), cut["closing"], cut.get("at_end", False))
        counts = (facts["dataset"], facts["cut_samples"], facts["dropped_samples"])
    except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"--pack-index {path} cannot be read as a pack index ({first_line(error)}); {remedy}") from None
    if facts["dataset"] != fingerprint(dataset.prefix):
        raise UserError(
            f"--pack-index {path} was written for another dataset than {dataset.prefix} is now; {remedy} again"
        )
    return PackIndex(rules, cut, Packs(samples, starts), taken, *counts)


def _is_index(path: Path) -> bool:
    """Whether a file is an index, of whatever dataset."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return {"facts.npy", "samples.npy", "starts.npy"} <= set(file.namelist())


def fingerprint(prefix: str) -> str:
    """sha256 of the lengths of a dataset, from which all packs follow: of the file ``.idx`` of its tokens."""
    return hashlib.sha256(Path(column_path(prefix, "input_ids") + ".idx").read_bytes()).hexdigest()


def _cut_of(dataset: InstructionDataset, seq_length: int) -> RowCut:
    manifest = dataset.manifest
    if manifest is None or not manifest.get("prompt_type"):
        return RowCut(seq_length)
    template = get_template(manifest["prompt_type"], manifest.get("template_row"), f"dataset {dataset.prefix}")
    return RowCut(seq_length, template.rules, int(manifest["append_eod"]), template.of_handler)
