"""A prefix in, documents out: samples and pads told apart, whoever wrote the dataset and however it is packed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.boundaries import PAD_SEGMENT, choose_boundaries
from mindspeed_ift.data.dataset import InstructionDataset, is_dataset
from mindspeed_ift.data.encode_pairs import PAIR_COLUMNS
from mindspeed_ift.data.indexed import IndexedColumn, column_path, read_manifest
from mindspeed_ift.data.pack_index import load_index
from mindspeed_ift.data.packed_view import PackedView
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample
from mindspeed_ift.data.show.origins import Origins
from mindspeed_ift.data.template_choice import get_template
from mindspeed_ift.data.tokenizer import Tokenizer, load_tokenizer

_COLUMN_END = re.compile(r"_document(\.bin|\.idx)?$")


@dataclass(frozen=True)
class Part:
    """A run of tokens of a document: one sample, or its pads.

    Attributes:
        number: Of the sample in the document, from 1; 0 for pads.
        input_ids: int ``[n]``.
        learnt: bool ``[n]``.
    """

    number: int
    input_ids: np.ndarray
    learnt: np.ndarray


@dataclass(frozen=True)
class Document:
    """One document of a dataset.

    Attributes:
        number: From 0.
        input_ids: int ``[n]``.
        learnt: bool ``[n]``.
        segments: int ``[n]``: 1..k for its samples, 0 for pads.
    """

    number: int
    input_ids: np.ndarray
    learnt: np.ndarray
    segments: np.ndarray

    def parts(self) -> Iterator[Part]:
        """Its samples and pads, in order."""
        borders = np.flatnonzero(np.diff(self.segments, prepend=-1))
        samples = 0
        for start, stop in zip(borders, [*borders[1:], len(self.segments)]):
            pads = self.segments[start] == PAD_SEGMENT
            samples += not pads
            yield Part(0 if pads else samples, self.input_ids[start:stop], self.learnt[start:stop])


class PreferencePairs:
    """Columns of a better and a worse answer to each prompt; a document is both, one after the other.

    Args:
        prefix: ``--output-prefix`` of preprocess_data.py.

    Raises:
        UserError: A column is missing or not whole.
    """

    def __init__(self, prefix: str) -> None:
        self._columns = [IndexedColumn(column_path(prefix, name)) for name in PAIR_COLUMNS]
        self.lengths: np.ndarray = self._columns[0].lengths + self._columns[2].lengths
        """int32 ``[documents]``."""
        if any(not np.array_equal(self._columns[at].lengths, self._columns[at + 1].lengths) for at in (0, 2)):
            raise UserError(f"{prefix}: ids and labels of its pairs differ in length; prepare it again")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> Sample:
        """Both, as segments 1 and 2."""
        better, better_labels, worse, worse_labels = (column[number] for column in self._columns)
        segments = np.repeat(np.array([1, 2], np.int32), [len(better), len(worse)])
        return Sample(np.concatenate([better, worse]), np.concatenate([better_labels, worse_labels]), segments)


class ShownDataset:
    """Any dataset of this package or of MindSpeed-LLM: document number -> `Document`.

    Args:
        prefix: ``--output-prefix`` of preprocess_data.py; of plain text with several columns the path of one,
            ``PREFIX_COLUMN_document``.
        tokenizer: Folder; "" takes the one that the manifest names.
        pack_index: Shows the rows of this file of repack_dataset.py instead of the samples they are made of.

    Raises:
        UserError: There is no such dataset, tokenizer or index, or they do not belong together.
    """

    def __init__(self, prefix: str, tokenizer: str = "", pack_index: Path | None = None) -> None:
        self.prefix = prefix
        self.notice = ""
        """Why the borders of samples are not shown; "" where they are."""
        data = _open(prefix)
        self.manifest: dict[str, Any] | None = _manifest(prefix, data)
        """As preprocess.py wrote it, or None."""
        self.tokenizer = _find_tokenizer(self.manifest, tokenizer, prefix)
        """Turns its ids into text."""
        self._data: InstructionDataset | PackedView | PreferencePairs | IndexedColumn = data
        if pack_index is not None:
            if not isinstance(data, InstructionDataset):
                raise UserError(f"--pack-index is for instruction data, which {prefix} is not; leave it out")
            self._data = PackedView(data, load_index(pack_index, data), self.tokenizer.pad_id)
        self._segments = self._choose_segments()

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, number: int) -> Document:
        if isinstance(self._data, IndexedColumn):
            ids = self._data[number]
            return Document(number, ids, np.ones(len(ids), bool), np.ones(len(ids), np.int32))
        sample = self._data[number]
        return Document(number, sample.input_ids, sample.labels != IGNORED_LABEL, self._segments(sample))

    @property
    def lengths(self) -> np.ndarray:
        """int32 ``[documents]``: tokens of each, pads too."""
        return self._data.lengths

    def pieces(self, ids: np.ndarray) -> list[str]:
        """The text that each id adds; ``<ID>`` for one that the tokenizer does not have."""
        known = (ids >= 0) & (ids < self.tokenizer.vocab_size)
        texts = iter(self.tokenizer.pieces(ids[known].tolist()))
        return [next(texts) if is_known else f"<{number}>" for number, is_known in zip(ids.tolist(), known)]

    def name(self, part: Part) -> str:
        """What a part of a document is called."""
        if isinstance(self._data, PreferencePairs):
            return ("chosen", "rejected")[part.number - 1]
        return f"sample {part.number}"

    def origins(self, number: int) -> list[str]:
        """``FILE:RECORD`` of which each sample of a document was made, in their order; one for the two answers of a
        pair, none where no ledger tells."""
        return self._origins[number]

    @cached_property
    def _origins(self) -> Origins:
        if isinstance(self._data, PackedView):
            dataset, packs = self._data.dataset, self._data.index.packs
            return Origins(self.prefix, len(dataset), packed=False, packs=packs)
        return Origins(self.prefix, len(self), packed=bool((self.manifest or {}).get("pack", True)))

    def _choose_segments(self) -> Callable[[Sample], np.ndarray]:
        """int ``[n]`` of a document: 1..k for its samples, 0 for pads."""
        if isinstance(self._data, IndexedColumn):
            return _whole
        manifest = self.manifest
        if isinstance(self._data, PreferencePairs) or self._data.has_segments:
            return lambda sample: np.asarray(sample.segments)
        if manifest is None:
            # A row of one sample looks like a packed one: what ends in pads may be either.
            return lambda sample: _without_pads(sample, self.tokenizer.pad_id)
        if not manifest["pack"]:
            return _whole
        assert isinstance(self._data, InstructionDataset), "a packed view has segments"
        try:
            return choose_boundaries(self._data, manifest["eod_id"], manifest["turn_end_ids"]).segments
        except UserError:
            self.notice = "packed, and the dataset does not say where samples end: rows are shown whole"
            return lambda sample: _without_pads(sample, self.tokenizer.pad_id)


def _whole(sample: Sample) -> np.ndarray:
    return np.ones(len(sample), np.int32)


def _without_pads(sample: Sample, pad_id: int) -> np.ndarray:
    """One sample, and the pads at its end."""
    others = np.flatnonzero((sample.input_ids != pad_id) | (sample.labels != IGNORED_LABEL))
    segments = np.zeros(len(sample), np.int32)
    segments[: others[-1] + 1 if len(others) else 0] = 1
    return segments


def _open(prefix: str) -> InstructionDataset | PreferencePairs | IndexedColumn:
    if is_dataset(prefix):
        return InstructionDataset(prefix)
    return (
        PreferencePairs(prefix)
        if Path(f"{column_path(prefix, PAIR_COLUMNS[0])}.idx").is_file()
        else _text_column(prefix)
    )


def _text_column(prefix: str) -> IndexedColumn:
    """The column of plain text at a prefix."""
    if _COLUMN_END.search(prefix):
        return IndexedColumn(re.sub(r"\.(bin|idx)$", "", prefix))
    folder, name = Path(prefix).parent, Path(prefix).name
    found = sorted(file for file in folder.glob("*_document.idx") if file.name.startswith(name + "_"))
    if not found:
        raise UserError(f"no dataset at {prefix}; give the --output-prefix of preprocess_data.py")
    columns = [file.name[len(name) + 1 : -len("_document.idx")] for file in found]
    if len(columns) > 1:
        example = column_path(prefix, columns[0], packed_name=False)
        raise UserError(f"{prefix} has several columns ({', '.join(columns)}); show one, for example {example}")
    return IndexedColumn(column_path(prefix, columns[0], packed_name=False))


def _manifest(prefix: str, data: InstructionDataset | PreferencePairs | IndexedColumn) -> dict[str, Any] | None:
    """The manifest of a dataset; that of a single column stands under the prefix that the column's name begins with."""
    if not isinstance(data, IndexedColumn):
        return read_manifest(prefix)
    column = Path(data.path)
    for length in range(len(column.name), 0, -1):
        manifest = read_manifest(column.with_name(column.name[:length]))
        if manifest is not None and f"{column.name}.bin" in manifest.get("files", {}):
            return manifest
    return None


def _find_tokenizer(manifest: dict[str, Any] | None, given: str, prefix: str) -> Tokenizer:
    facts = manifest or {}
    path = given or facts.get("tokenizer", "")
    if not path:
        raise UserError(
            f"{prefix} does not name its tokenizer; give --tokenizer-name-or-path with the folder it was prepared with"
        )
    if not given and not Path(path).is_dir():
        raise UserError(
            f"the tokenizer of {prefix} is not at {path} any more; give its folder with --tokenizer-name-or-path"
        )
    tokenizer = load_tokenizer(path)
    recorded = facts.get("tokenizer_sha256")
    if recorded and recorded != tokenizer.fingerprint:
        raise UserError(
            f"{prefix} was prepared with another tokenizer than {path} (sha256 {recorded[:12]}, not"
            f" {tokenizer.fingerprint[:12]}); give that one with --tokenizer-name-or-path"
        )
    if not facts.get("prompt_type"):
        return tokenizer
    # Stop words that the tokenizer lacks have ids behind its last one.
    template = get_template(facts["prompt_type"], facts.get("template_row"), prefix)
    return tokenizer.with_special_tokens(template.stop_words)
