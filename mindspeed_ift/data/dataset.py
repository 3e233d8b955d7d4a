"""Files of an indexed dataset in, samples out; and the checks that tell at the start whether they fit.

Reads what preprocess.py writes and what MindSpeed-LLM writes (which has no manifest). Nothing is copied into memory:
a sample is a view of the mapped files.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.indexed import WEIGHTS, IndexedColumn, column_path, manifest_path, read_manifest
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample
from mindspeed_ift.data.staging import unfinished

COLUMNS = ("input_ids", "labels", "attention_mask")
INSPECTED_ROWS = 64
"""So many rows are looked at where only the data itself can tell how it was made."""

_COLUMN_SUFFIX = re.compile(r"_packed_.*$|\.(bin|idx)$|\.manifest\.json$")
_VALUES_AT_ONCE = 1 << 22


class Samples(Protocol):
    """What training needs of a dataset: one of files, a packed view of one, or a blend of several.

    Attributes:
        prefix: Of the files.
        manifest: What preprocess.py noted, or None.
        lengths: int32 ``[samples]``: number of tokens of each sample.
    """

    prefix: str
    manifest: dict[str, Any] | None
    lengths: np.ndarray

    @property
    def has_segments(self) -> bool:
        """Whether samples say which of their tokens belong together."""
        ...

    @property
    def is_packed(self) -> bool:
        """Whether a row holds several samples."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Sample: ...

    def located(self, number: int) -> tuple[str, int]:
        """Prefix of the files that a sample, or row, is of, and its number among those."""
        ...

    def check_fits(self, vocab_size: int) -> None:
        """Refuse token ids that the model does not have."""
        ...


class InstructionDataset:
    """Instruction data on disk: document number -> `Sample`.

    Args:
        prefix: ``--output-prefix`` of preprocess_data.py: the path before ``_packed_input_ids_document``.

    Raises:
        UserError: Files are missing, hold nothing, were cut, or do not belong together.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = str(prefix)
        self.manifest = read_manifest(self.prefix)
        """What preprocess.py noted (see there), or None for a dataset of MindSpeed-LLM."""
        _check_learnt(self.prefix, self.manifest)
        _check_files(self.prefix)
        weights = (WEIGHTS,) if Path(f"{column_path(self.prefix, WEIGHTS)}.idx").is_file() else ()
        self._columns = {name: IndexedColumn(column_path(self.prefix, name)) for name in (*COLUMNS, *weights)}
        self.lengths: np.ndarray = np.asarray(self._columns["input_ids"].lengths)
        """int32 ``[samples]``: number of tokens of each sample."""
        self._check_columns()
        self._check_manifest()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> Sample:
        """The sample of that number, as views of the mapped files."""
        segments = self._columns["attention_mask"][number] if self.has_segments else None
        weights = self._columns[WEIGHTS][number] if self.has_weights else None
        return Sample(self._columns["input_ids"][number], self._columns["labels"][number], segments, weights)

    def located(self, number: int) -> tuple[str, int]:
        """See `Samples.located`."""
        return self.prefix, number

    @property
    def has_weights(self) -> bool:
        """Whether labels have shares in the loss other than 0 and 1 (`Sample.loss_weights`)."""
        return WEIGHTS in self._columns

    @cached_property
    def has_segments(self) -> bool:
        """Whether the attention_mask column says which tokens belong together (neat-pack), or is all ones."""
        if self.manifest is not None:
            return bool(self.manifest["neat_pack"])
        rows = range(min(len(self), INSPECTED_ROWS))
        return any((self._columns["attention_mask"][number] != 1).any() for number in rows)

    @property
    def is_packed(self) -> bool:
        """Whether a document holds several samples: as the manifest says; without one, with boundaries stored or all
        documents of one length."""
        if self.manifest is not None:
            return bool(self.manifest["pack"])
        return self.has_segments or (len(self) > 1 and bool(self.lengths.min() == self.lengths.max()))

    def check_fits(self, vocab_size: int) -> None:
        """Read all ids and labels once (about a gigabyte a second).

        Args:
            vocab_size: Rows of the model's embedding; ids must be less.

        Raises:
            UserError: A token id or label is none of the model's; names the first such sample.
        """
        for name in ("input_ids", "labels"):
            column = self._columns[name]
            if not self.lengths.any():
                continue
            values = np.memmap(f"{column.path}.bin", dtype=column.dtype, mode="r")
            for start in range(0, len(values), _VALUES_AT_ONCE):
                block = values[start : start + _VALUES_AT_ONCE]
                wrong = (block < 0) | (block >= vocab_size)
                if name == "labels":
                    wrong &= block != IGNORED_LABEL
                if wrong.any():
                    self._refuse(name, start + int(wrong.argmax()), int(block[wrong.argmax()]), vocab_size)

    def _refuse(self, column: str, position: int, value: int, vocab_size: int) -> None:
        offset = position * self._columns[column].dtype.itemsize
        sample = int(np.searchsorted(self._columns[column].offsets, offset, side="right")) - 1
        raise UserError(
            f"{column_path(self.prefix, column)}: sample {sample} holds {value}, but the model has the token ids"
            f" 0 to {vocab_size - 1}; prepare the data with this model's tokenizer"
        )

    def _check_columns(self) -> None:
        if len(self) == 0:
            raise UserError(f"dataset {self.prefix} holds no samples; prepare it again from records that are kept")
        for name in list(self._columns)[1:]:
            lengths = self._columns[name].lengths
            if len(lengths) != len(self):
                raise UserError(
                    f"dataset {self.prefix}: {name} holds {len(lengths)} samples and input_ids {len(self)}; the"
                    " columns are not of one run of preprocess_data.py, prepare the dataset again"
                )
            if not np.array_equal(lengths, self.lengths):
                sample = int((lengths != self.lengths).argmax())
                raise UserError(
                    f"dataset {self.prefix}: sample {sample} has {self.lengths[sample]} input_ids and"
                    f" {lengths[sample]} {name}; the columns are not of one run of preprocess_data.py, prepare the"
                    " dataset again"
                )

    def _check_manifest(self) -> None:
        """Sizes only: hashing a large dataset at every start would take minutes."""
        if self.manifest is None:
            return
        for column in self._columns.values():
            for file in (Path(f"{column.path}.bin"), Path(f"{column.path}.idx")):
                noted = self.manifest.get("files", {}).get(file.name)
                size = file.stat().st_size
                if noted is not None and noted["bytes"] != size:
                    raise UserError(
                        f"{file} has {size} bytes, but {manifest_path(self.prefix)} says {noted['bytes']}: it was"
                        " changed after preparation; prepare or copy the dataset again"
                    )


def is_dataset(prefix: str) -> bool:
    """Whether any file of a dataset lies at ``prefix``."""
    return any(Path(column_path(prefix, name) + ".idx").is_file() for name in COLUMNS)


def _check_learnt(prefix: str, manifest: dict[str, Any] | None) -> None:
    if manifest is not None and manifest.get("learnt_tokens") == 0:
        raise UserError(
            f"dataset {prefix} holds prompts for reinforcement learning, of which nothing is learnt; prepare the records"
            " with another --handler-name, or look at a column with show-data"
            f" {column_path(prefix, 'input_ids')}"
        )


def _check_files(prefix: str) -> None:
    """All files must be there, or the message says what to give instead."""
    for name in COLUMNS:
        for suffix in (".idx", ".bin"):
            file = Path(column_path(prefix, name) + suffix)
            if file.is_file():
                continue
            stem = _COLUMN_SUFFIX.sub("", prefix)
            if stem != prefix:
                raise UserError(f"--data-path {prefix}: no such dataset; give the path before _packed_: {stem}")
            raise UserError(f"no such dataset file: {file}; {_found_beside(file, prefix)}")


def _found_beside(file: Path, prefix: str) -> str:
    """What --data-path could have meant, from the folder it points to."""
    if (folder := unfinished(prefix)) is not None:
        return f"its preparation is not finished ({folder}): run the same preprocess command again, which goes on"
    end = "_packed_input_ids_document.idx"
    found = sorted(str(path)[: -len(end)] for path in file.parent.glob(f"*{end}") if file.parent.is_dir())
    others = [path for path in found if path != prefix]
    if others:
        return f"--data-path is the --output-prefix of preprocess_data.py; there is {', '.join(others[:3])}"
    return "--data-path is the --output-prefix of preprocess_data.py; run that first"
