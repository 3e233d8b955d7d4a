"""Chunks of records in, token arrays and their part of the ledger out, in order, over worker processes.

The same chunks in the same order for any number of workers, so the dataset is the same; a few chunks are under way
at a time, so memory is bounded however long the input is. Worker processes are forked from one that has the tokenizer
and little else, so that they start at once and share its memory.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ift.config.errors import RunError, UserError
from mindspeed_ift.data.conversation import Conversation, DropRecord, LeaveOut, PreferencePair, RolloutPrompt
from mindspeed_ift.data.cutting import fit_text
from mindspeed_ift.data.encode import CUT_NOTE, SPLIT_NOTE, EncodeOptions, Encoder, StopRun, refuse_overlong
from mindspeed_ift.data.encode_pairs import PAIR_COLUMNS, EncodedPair, encode_pairs
from mindspeed_ift.data.encode_rollouts import EncodedRollout, encode_rollouts
from mindspeed_ift.data.fast_tokenizer import PACKAGE, is_installed
from mindspeed_ift.data.formats import OPTIONAL_COLUMNS, Format
from mindspeed_ift.data.indexed import WEIGHTS
from mindspeed_ift.data.learning import plain_weights
from mindspeed_ift.data.ledger import Ledger
from mindspeed_ift.data.records import Origin, Record
from mindspeed_ift.data.rollout_formats import RolloutFormat
from mindspeed_ift.data.sample import Sample
from mindspeed_ift.data.template_choice import get_template, make_encoder
from mindspeed_ift.data.template_files import Row
from mindspeed_ift.data.text_formats import TextFormat
from mindspeed_ift.data.tokenizer import Tokenizer, load_tokenizer

CHUNK = 500
"""Records a worker takes at a time."""
PROOF = 100
"""Records on which a fast encoder is held to the exact one."""

Chunk = list[tuple[Record, Origin]]


@dataclass(frozen=True)
class Job:
    """What is to be done with the records.

    Attributes:
        form: How records are read.
        template: Name of the template; unused for plain text.
        template_row: Describes it, from a user's file; None for a built-in one.
        options: What is learnt and how long a sample may be.
        pad_to_multiple_of: Plain text: the length of a document is a multiple of it.
    """

    form: Format
    template: str
    template_row: Row | None
    options: EncodeOptions
    pad_to_multiple_of: int = 1


@dataclass(frozen=True)
class EncodedChunk:
    """What became of a chunk.

    Attributes:
        values: Column -> int32 ``[sum of lengths]``: ``input_ids`` and ``labels``, or the columns of pairs or
            of plain text; `WEIGHTS`, float32, too if a record asks for it.
        lengths: Column -> int32 ``[samples]``.
        ledger: The account of these records.
    """

    values: dict[str, np.ndarray]
    lengths: dict[str, np.ndarray]
    ledger: Ledger


class Worker:
    """Encodes chunks in one process."""

    def __init__(self, job: Job, tokenizer: Tokenizer) -> None:
        self.job = job
        self.tokenizer = tokenizer
        self.encoder = (
            None
            if isinstance(job.form, TextFormat)
            else make_encoder(get_template(job.template, job.template_row), self.tokenizer, job.options)
        )

    def encode(self, chunk: Chunk) -> EncodedChunk:
        """Encode a chunk; records that are no samples stand in the ledger."""
        ledger = Ledger(read=len(chunk))
        for record, _ in chunk:
            ledger.columns.update(record)
            ledger.filled.update(column for column in OPTIONAL_COLUMNS if record.get(column))
        if self.encoder is None:
            return self._encode_text(chunk, ledger)
        if self.job.form.makes_pairs:
            return self._encode_columns(chunk, ledger, PAIR_COLUMNS, partial(encode_pairs, self.encoder))
        if isinstance(self.job.form, RolloutFormat):
            kept = self.job.form.kept
            encode = partial(encode_rollouts, self.encoder, kept=kept)
            return self._encode_columns(chunk, ledger, ("input_ids", *kept), encode)
        return self._encode_conversations(chunk, ledger, self.encoder)

    def prove(self, chunk: Chunk) -> str | None:
        """Hold the fast encoder to the exact one on these records; the first text for which their ids differ."""
        fast = (self.tokenizer if self.encoder is None else self.encoder.tokenizer).fast
        assert fast is not None
        fast.proving = True
        self.encode(chunk)
        fast.proving = False
        return fast.difference

    def _encode_conversations(self, chunk: Chunk, ledger: Ledger, encoder: Encoder) -> EncodedChunk:
        converted = [self._convert(record) for record, _ in chunk]
        encoded = iter(encoder.encode([one for one in converted if isinstance(one, Conversation)]))
        samples = []
        for one, (_, origin) in zip(converted, chunk):
            result = next(encoded) if isinstance(one, Conversation) else one
            if isinstance(result, StopRun):
                raise UserError(f"{origin}: {result}")
            if isinstance(result, DropRecord):
                _drop(ledger, origin, result)
                continue
            samples += result.samples
            ledger.keep(
                origin,
                result.notes,
                samples=len(result.samples),
                tokens=sum(map(len, result.samples)),
                learnt_tokens=sum(sample.learnt_tokens for sample in result.samples),
                cut_tokens=result.cut_tokens,
            )
        lengths = np.array([len(sample) for sample in samples], np.int32)
        values = _columns(samples)
        return EncodedChunk(values, dict.fromkeys(values, lengths), ledger)

    def _encode_columns(
        self,
        chunk: Chunk,
        ledger: Ledger,
        names: Sequence[str],
        encode: Callable[[list[Any]], Sequence[EncodedPair | EncodedRollout | DropRecord]],
    ) -> EncodedChunk:
        """Records whose columns have lengths of their own."""
        converted = [self._convert(record) for record, _ in chunk]
        encoded = iter(encode([one for one in converted if not isinstance(one, DropRecord)]))
        found = []
        for one, (_, origin) in zip(converted, chunk):
            result = one if isinstance(one, DropRecord) else next(encoded)
            if isinstance(result, StopRun):
                raise UserError(f"{origin}: {result}")
            if isinstance(result, DropRecord):
                _drop(ledger, origin, result)
                continue
            found.append(result.columns())
            ledger.keep(
                origin,
                result.notes,
                tokens=result.tokens,
                learnt_tokens=result.learnt_tokens,
                cut_tokens=result.cut_tokens,
            )
        return EncodedChunk(
            {name: _joined([columns[name] for columns in found]) for name in names},
            {name: np.array([len(columns[name]) for columns in found], np.int32) for name in names},
            ledger,
        )

    def _convert(self, record: Record) -> Conversation | PreferencePair | RolloutPrompt | DropRecord:
        try:
            return self.job.form.convert(record)
        except DropRecord as reason:
            return reason

    def _encode_text(self, chunk: Chunk, ledger: Ledger) -> EncodedChunk:
        keys = self.job.form.json_keys
        found: dict[str, list[np.ndarray]] = {key: [] for key in keys}
        for record, origin in chunk:
            try:
                pieces = self._pieces_of_text(record, origin, ledger)
            except StopRun as reason:
                raise UserError(f"{origin}: {reason}") from None
            except DropRecord as reason:
                _drop(ledger, origin, reason)
                continue
            for key, column in zip(keys, pieces):
                found[key] += column
        return EncodedChunk(
            {key: _joined(found[key]) for key in keys},
            {key: np.array([len(tokens) for tokens in found[key]], np.int32) for key in keys},
            ledger,
        )

    def _text_ids(self, text: str) -> np.ndarray:
        """int32 ``[n]``; pads stand in front of the end, which is the document's last token."""
        ids = self.tokenizer.encode(text)
        end = [self.tokenizer.eod_id] * self.job.options.append_eod
        multiple = self.job.pad_to_multiple_of
        pads = multiple - len(ids) % multiple - len(end) if multiple > 1 else 0
        return np.array([*ids, *[self.tokenizer.vocab_size] * pads, *end], np.int32)

    def _pieces_of_text(self, record: Record, origin: Origin, ledger: Ledger) -> list[list[np.ndarray]]:
        """The documents of each column that a record becomes: one, or several where it is split; counted.

        Raises:
            DropRecord: There are none.
        """
        options = self.job.options
        columns = [self._text_ids(text) for text in self.job.form.texts(record)]
        whole, longest = sum(map(len, columns)), max(map(len, columns))
        if options.limit is not None and longest >= options.limit:
            raise LeaveOut(f"{options.limit} tokens or more (--seq-length)", whole)
        pieces, notes = [[ids] for ids in columns], []
        if options.room is not None and longest > options.room:
            refuse_overlong(options, longest, whole)
            pieces = [fit_text(ids, options.overlong == "split", options.room) for ids in columns]
            notes = [SPLIT_NOTE if options.overlong == "split" else CUT_NOTE]
        tokens = sum(len(piece) for column in pieces for piece in column)
        samples = max(map(len, pieces))
        ledger.keep(origin, notes, samples=samples, tokens=tokens, learnt_tokens=tokens, cut_tokens=whole - tokens)
        return pieces


class WorkerPool:
    """The processes that encode; made before anything else that starts threads, which forked processes would lack.

    Args:
        tokenizer: Text -> ids; gets its fast encoder here.
        workers: Processes; 1 works in this one.
        backend: ``--tokenizer-backend``.
        report: Takes a line where a fast encoder that could have been used is not.

    Raises:
        UserError: ``backend`` is "fast" and there is none.
    """

    def __init__(
        self, tokenizer: Tokenizer, workers: int, backend: str = "hf", report: Callable[[str], None] = print
    ) -> None:
        self._tokenizer = tokenizer
        self._workers = workers
        self._report = report
        if workers > 1:
            # One thread a process: the tokenizer's own threads would fight over the cores that the workers share, and
            # a process that has them cannot be forked.
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._use_fast = (backend == "fast" or backend == "auto" and is_installed()) and self._get_fast(backend)
        self._pool = _start_processes(tokenizer, workers) if workers > 1 else None

    def encode_all(self, job: Job, records: Iterable[tuple[Record, Origin]]) -> Iterator[EncodedChunk]:
        """Encode all records, chunk by chunk, in their order; the processes end with them.

        Args:
            job: What to do.
            records: Read as results are taken, a few chunks ahead at most.

        Raises:
            RunError: A worker process died.
        """
        stream = iter(records)
        worker = Worker(job, self._tokenizer)
        if self._use_fast:
            first = list(islice(stream, PROOF))
            stream = chain(first, stream)
            self._use_fast = self._is_proven(worker.prove(first))
        chunks = iter(lambda: list(islice(stream, CHUNK)), [])
        if self._pool is None:
            for chunk in chunks:
                yield worker.encode(chunk)
            return
        under_way: deque[tuple[Future[EncodedChunk], Chunk]] = deque()
        try:
            for chunk in chunks:
                under_way.append((self._pool.submit(_encode, job, chunk, self._use_fast), chunk))
                if len(under_way) > 2 * self._workers:
                    yield _result(*under_way.popleft(), worker)
            while under_way:
                yield _result(*under_way.popleft(), worker)
        except BrokenProcessPool as error:
            raise RunError("a worker process died, most likely for want of memory; use fewer --workers") from error
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _get_fast(self, backend: str) -> bool:
        try:
            return self._is_proven(self._tokenizer.use_fast().difference)
        except UserError as error:
            if backend == "fast":
                raise
            self._report(f"{error}; tokenizers encodes, more slowly")
            return False

    def _is_proven(self, difference: str | None) -> bool:
        if difference is not None:
            self._report(
                f"{PACKAGE} gives other ids than tokenizers for {difference[:60]!r}: tokenizers encodes, more slowly"
            )
        return difference is None


def _result(future: Future[EncodedChunk], chunk: Chunk, worker: Worker) -> EncodedChunk:
    try:
        return future.result()
    except RecursionError:  # a record is nested more deeply than can be handed to another process
        return worker.encode(chunk)


def _start_processes(tokenizer: Tokenizer, workers: int) -> ProcessPoolExecutor:
    """Forked where that is safe, which is with one thread; started anew elsewhere, which takes a second and more
    memory."""
    if sys.platform == "linux" and not _other_threads():
        gc.freeze()  # collections in the children would write to what they share
        pool = ProcessPoolExecutor(workers, get_context("fork"), initializer=_take, initargs=(tokenizer,))
    else:
        source = (str(tokenizer.path), tokenizer.trusts_remote_code)
        pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_load, initargs=source)
    pool.submit(int)  # starts the processes
    return pool


def _other_threads() -> list[str]:
    """Names of the threads of this process besides the first; that of the allocator jemalloc, which sees to forks
    itself, is left out."""
    threads = [task for task in Path("/proc/self/task").iterdir() if int(task.name) != os.getpid()]
    return [name for task in threads if (name := (task / "comm").read_text().strip()) != "jemalloc_bg_thd"]


_tokenizer: Tokenizer | None = None
_worker: Worker | None = None
"""A worker process's own: set once in each."""


def _take(tokenizer: Tokenizer) -> None:
    """Runs once in a process that was forked."""
    global _tokenizer
    _tokenizer = tokenizer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _load(path: str, trust_remote_code: bool) -> None:
    """Runs once in a process that was started anew."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _take(load_tokenizer(path, trust_remote_code))


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, and they would wait for chunks forever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode(job: Job, chunk: Chunk, use_fast: bool) -> EncodedChunk:
    global _worker
    assert _tokenizer is not None
    if _worker is None or _worker.job != job:
        if not use_fast:
            _tokenizer.fast = None
        elif _tokenizer.fast is None:
            _tokenizer.use_fast()
        _worker = Worker(job, _tokenizer)
    return _worker.encode(chunk)


def _drop(ledger: Ledger, origin: Origin, reason: DropRecord) -> None:
    ledger.drop(origin, str(reason), malformed=reason.malformed, cut_tokens=reason.cut_tokens)


def _columns(samples: list[Sample]) -> dict[str, np.ndarray]:
    values = {
        "input_ids": _joined([sample.input_ids for sample in samples]),
        "labels": _joined([sample.labels for sample in samples]),
    }
    given = [sample.loss_weights for sample in samples]
    if any(one is not None for one in given):
        weights = [plain_weights(sample.labels) if one is None else one for sample, one in zip(samples, given)]
        values[WEIGHTS] = np.concatenate(weights)
    return values


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
