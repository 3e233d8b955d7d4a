"""One run's share of the records, encoded, on disk; and all shares read back as the chunks of a single run.

Records are dealt out chunk by chunk, so each run reads all of the input (which is quick) and encodes every N-th chunk
of it. A share holds its samples unpacked, so that they are packed together once all are there.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data import workers
from mindspeed_ift.data.hub import HubDataset
from mindspeed_ift.data.indexed import column_dtype
from mindspeed_ift.data.ledger import Entry, Ledger, Outcome
from mindspeed_ift.data.records import Readable
from mindspeed_ift.data.staging import GrowingFile, Mark, Staging, mark_of, publish, report_write_errors
from mindspeed_ift.data.workers import EncodedChunk

Item = TypeVar("Item")

_KINDS = ("values", "chunks")


@dataclass(frozen=True)
class Share:
    """Which chunks a run encodes.

    Attributes:
        index: Of the share, from 0.
        count: Of all shares.
    """

    index: int
    count: int

    def prefix(self, output_prefix: str) -> str:
        """Where its files lie: of the dataset that will be made of all."""
        return f"{output_prefix}.shard-{self.index:05d}-of-{self.count:05d}"

    def deal_out(self, records: Iterator[Item], done: int) -> Iterator[Item]:
        """The records of its chunks, all of which are read.

        Args:
            records: Of the whole input.
            done: So many chunks of this share are left out, since they are encoded.
        """
        blocks = iter(lambda: list(itertools.islice(records, workers.CHUNK)), [])
        return itertools.chain.from_iterable(itertools.islice(blocks, self.index + done * self.count, None, self.count))


def check_sources(sources: Sequence[Readable]) -> None:
    """Do nothing if all runs can be told to read the same records.

    Raises:
        UserError: One is a stream, which may hold others another time.
    """
    for source in sources:
        if isinstance(source, HubDataset) and source.fingerprint is None:
            raise UserError(
                f"--num-shards: Hugging Face dataset {source} is a stream, which may hold other records in another run;"
                " leave streaming out, or save it with save_to_disk first"
            )


class ShareWriter:
    """Takes in the chunks of one share.

    Args:
        prefix: Of the share.
        staging: Where its files grow.
        state: Go on from there; None begins anew.

    Raises:
        ChangedFile: A file is not as it was then.
    """

    def __init__(self, prefix: str, staging: Staging, state: Mapping[str, Any] | None = None) -> None:
        self.prefix = Path(prefix)
        self.staging = staging
        self.done = 0 if state is None else state["done"]
        """Chunks taken in."""
        self.ledger = Ledger() if state is None else Ledger.from_state(state["ledger"])
        """Of all of them."""
        names = {kind: f"{self.prefix.name}.{kind}" for kind in _KINDS}
        self._files = {
            kind: GrowingFile(staging.folder / name, None if state is None else state["marks"][name])
            for kind, name in names.items()
        }

    @property
    def reached(self) -> str:
        """How far it is, for people."""
        return f"chunk {self.done} of this shard"

    def add(self, chunk: EncodedChunk) -> None:
        """Take in the next chunk of this share."""
        line = {
            "lengths": {name: lengths.tolist() for name, lengths in chunk.lengths.items()},
            "ledger": chunk.ledger.state(),
            "entries": chunk.ledger.entries,
        }
        with report_write_errors(self.prefix):
            for name in chunk.lengths:
                self._files["values"].write(np.ascontiguousarray(chunk.values[name], column_dtype(name)).data)
            self._files["chunks"].write(json.dumps(line).encode() + b"\n")
        self.ledger.merge(chunk.ledger)
        self.done += 1

    def save(self, found: Mapping[str, Any]) -> None:
        """Let later runs with this fingerprint go on from here."""
        with report_write_errors(self.prefix):
            self.staging.save(found, {"done": self.done, "ledger": self.ledger.state(), "marks": self._marks()})

    def commit(self, found: Mapping[str, Any], notices: list[str]) -> dict[str, Any]:
        """Give the files their names; ``files`` with their sizes and checksums.

        Args:
            found: The fingerprint of this run.
            notices: About the input, for the run that joins the shares.
        """
        with report_write_errors(self.prefix):
            files = self._marks()
            self.close()
            about = {"fingerprint": found, "chunks": self.done, "notices": notices, "files": files}
            name = f"{self.prefix.name}.json"
            (self.staging.folder / name).write_text(json.dumps(about), encoding="utf-8")
            publish(self.staging.folder, self.prefix.parent, [*files, name])
        return files

    def close(self) -> None:
        """Add no more."""
        for file in self._files.values():
            file.close()

    def _marks(self) -> dict[str, Mark]:
        return {file.path.name: file.mark() for file in self._files.values()}


class Shares:
    """All shares of a dataset.

    Args:
        output_prefix: Of the dataset.
        count: Of the shares.
        fingerprint: Of the run that joins them.

    Raises:
        UserError: A share is missing, damaged, or of a run with other flags, input or program.
    """

    def __init__(self, output_prefix: str, count: int, fingerprint: Mapping[str, Any]) -> None:
        self._prefixes = [Share(index, count).prefix(output_prefix) for index in range(count)]
        missing = [prefix for prefix in self._prefixes if not Path(f"{prefix}.json").is_file()]
        if missing:
            index = self._prefixes.index(missing[0])
            raise UserError(
                f"{len(missing)} of {count} shards are missing, first {missing[0]}.json; run the same command with"
                f" --shard-index {index} instead of --merge-shards, or copy its files here"
            )
        self._about = [_read_about(prefix, fingerprint) for prefix in self._prefixes]
        self.notices: list[str] = self._about[0]["notices"]
        """About the input."""

    def chunks(self, done: int) -> Iterator[EncodedChunk]:
        """The chunks of a single run over all records, without those of the first ``done`` records."""
        readers = [_read_chunks(prefix) for prefix in self._prefixes]
        for number in range(sum(about["chunks"] for about in self._about)):
            chunk = next(readers[number % len(readers)])
            if number * workers.CHUNK >= done:
                yield chunk


def _read_about(prefix: str, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    try:
        about = json.loads(Path(f"{prefix}.json").read_text(encoding="utf-8"))
        theirs = about["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{prefix}.json cannot be read ({error}); encode this shard again") from error
    mine = json.loads(json.dumps(fingerprint))
    for part in mine:
        if theirs.get(part) != mine[part]:
            raise UserError(f"{prefix} was made with other {_difference(part, mine[part], theirs.get(part))}")
    folder = Path(prefix).parent
    for name, mark in about["files"].items():
        if not (folder / name).is_file() or mark_of(folder / name) != mark:
            raise UserError(f"{folder / name} is not as it was written; encode this shard again, or copy it again")
    return about


def _difference(part: str, mine: Any, theirs: Any) -> str:
    if part == "flags" and isinstance(theirs, dict):
        names = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
        told = ", ".join(f"--{name.replace('_', '-')} {theirs.get(name)} (here {mine.get(name)})" for name in names)
        return f"flags: {told}; give all shards the same"
    what = {"input": "input files", "tokens": "a tokenizer or template", "program": "a version of this program"}
    return f"{what[part]}; give all shards the same"


def _read_chunks(prefix: str) -> Iterator[EncodedChunk]:
    with open(f"{prefix}.chunks", encoding="utf-8") as lines, open(f"{prefix}.values", "rb") as values:
        for line in lines:
            found = json.loads(line)
            lengths = {name: np.array(each, np.int32) for name, each in found["lengths"].items()}
            ledger = Ledger.from_state(found["ledger"])
            ledger.entries = [Entry(file, record, Outcome(out), *rest) for file, record, out, *rest in found["entries"]]
            yield EncodedChunk(
                {
                    name: np.fromfile(values, column_dtype(name), int(each.sum(dtype=np.int64)))
                    for name, each in lengths.items()
                },
                lengths,
                ledger,
            )
