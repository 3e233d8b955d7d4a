"""What the records read so far have become, aside on disk; and how a later run goes on from there.

A run that was killed is gone on with if nothing has changed that decides its bytes: flags, input files, tokenizer,
template, and this program. The records that it had finished are read again, which is quick, but not encoded again.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import mindspeed_ift
from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.hub import HubDataset
from mindspeed_ift.data.indexed import WEIGHTS, DatasetWriter
from mindspeed_ift.data.learning import plain_weights
from mindspeed_ift.data.ledger import Ledger
from mindspeed_ift.data.ledger_file import LedgerFile
from mindspeed_ift.data.records import Readable
from mindspeed_ift.data.staging import Mark, Staging, mark_of, report_write_errors
from mindspeed_ift.data.workers import EncodedChunk

_BLOCK = 1 << 20
_NOT_OF_THE_BYTES = (
    *("output_prefix", "workers", "tokenizer_backend", "log_interval", "cache_dir", "max_drop_fraction", "dry_run"),
    *("num_shards", "shard_index", "merge_shards"),
)
"""Flags that may differ between a run and the one that goes on with it."""

MakeWriter = Callable[[Mapping[str, Mark] | None], DatasetWriter]


class InputMarks:
    """Size and sha256 of each input file, found out by a thread while the files are being read anyway.

    Args:
        sources: The input; one named twice counts once.
    """

    def __init__(self, sources: Sequence[Readable]) -> None:
        self._files = list(dict.fromkeys(source for source in sources if isinstance(source, Path)))
        self._datasets = [source for source in sources if isinstance(source, HubDataset)]
        self._before = [self._look(file) for file in self._files]
        self._marks: list[Mark] = []
        self._error: OSError | None = None
        # A daemon, so that a run that fails need not wait for it.
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def known(self) -> bool:
        """Whether `wait` returns at once."""
        return not self._thread.is_alive()

    def wait(self) -> list[dict[str, Any]]:
        """``file``, ``bytes`` and ``sha256`` of each file; ``file`` and ``fingerprint`` of a Hugging Face dataset.

        Raises:
            UserError: A file changed since this object was made, or cannot be read.
        """
        self._thread.join()
        changed = [file for file, before in zip(self._files, self._before) if self._look(file) != before]
        if changed or self._error is not None:
            raise UserError(f"{changed[0] if changed else self._error} changed while it was read; run again")
        files = [{"file": str(file), **mark} for file, mark in zip(self._files, self._marks)]
        return files + [{"file": str(source), "fingerprint": source.fingerprint} for source in self._datasets]

    def _read(self) -> None:
        try:
            self._marks = [mark_of(file) for file in self._files]
        except OSError as error:
            self._error = error

    @staticmethod
    def _look(file: Path) -> tuple[int, int] | None:
        try:
            found = file.stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns


def fingerprint(config: PreprocessConfig, inputs: InputMarks, token_facts: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides the bytes of a dataset.

    Args:
        config: The flags.
        inputs: The input files.
        token_facts: Hashes of tokenizer and template.
    """
    found = inputs.wait()
    if any(source.get("fingerprint", "") is None for source in found):
        found = [*found, {"never the same": str(uuid.uuid4())}]
    flags = {name: value for name, value in asdict(config).items() if name not in _NOT_OF_THE_BYTES}
    return {"flags": flags, "input": found, "tokens": dict(token_facts), "program": _program()}


class Intake:
    """Samples, rows of the ledger and totals of the records read so far.

    Args:
        staging: Where they grow.
        make_writer: Makes the writer of the samples, from its marks or anew.
        state: Go on from there; None begins anew.

    Raises:
        ChangedFile: A file is not as it was then.
    """

    def __init__(self, staging: Staging, make_writer: MakeWriter, state: Mapping[str, Any] | None = None) -> None:
        marks = None if state is None else state["marks"]
        self.staging = staging
        self.ledger = Ledger() if state is None else Ledger.from_state(state["ledger"])
        self.rows = LedgerFile(staging.folder, None if state is None else state["words"], marks)
        self.writer = make_writer(marks)

    @property
    def reached(self) -> str:
        """How far it is, for people."""
        return f"record {self.ledger.read:,}"

    def add(self, chunk: EncodedChunk) -> None:
        """Take in what became of the next records."""
        values = dict(chunk.values)
        if WEIGHTS in values and WEIGHTS not in self.writer.columns:
            self._add_weights()
        if WEIGHTS in self.writer.columns and WEIGHTS not in values:
            values[WEIGHTS] = plain_weights(values["labels"])
        if "attention_mask" in self.writer.columns:
            values["attention_mask"] = np.ones_like(values["input_ids"])
        lengths = {name: chunk.lengths.get(name, chunk.lengths.get("input_ids")) for name in self.writer.columns}
        self.writer.append(values, lengths)
        with report_write_errors(self.staging.folder):
            self.rows.append(chunk.ledger.entries)
        self.ledger.merge(chunk.ledger)

    def _add_weights(self) -> None:
        """Give the samples so far the weights that their labels say."""
        labels, lengths = self.writer.columns["labels"].read_back()
        self.writer.add_column(WEIGHTS)
        weights = self.writer.columns[WEIGHTS]
        with report_write_errors(self.writer.prefix):
            for start in range(0, len(labels), _BLOCK):
                weights.append(plain_weights(labels[start : start + _BLOCK]), np.zeros(0, np.int32))
            weights.append(np.zeros(0, np.float32), lengths)

    def save(self, found: Mapping[str, Any]) -> None:
        """Let later runs with this fingerprint go on from here."""
        with report_write_errors(self.staging.folder):
            marks = {**self.writer.marks(), **self.rows.marks()}
        state = {"marks": marks, "ledger": self.ledger.state(), "words": self.rows.state()}
        self.staging.save(found, state)

    def close(self) -> None:
        """Add no more."""
        for column in self.writer.columns.values():
            column.close()
        self.rows.close()


def _program() -> dict[str, str]:
    """Version and sha256 of the sources that make a dataset."""
    root = Path(mindspeed_ift.__file__).parent
    sources = [*sorted((root / "data").glob("*.py")), root / "config" / "data.py"]
    return {"version": mindspeed_ift.__version__, **{source.name: mark_of(source)["sha256"] for source in sources}}
