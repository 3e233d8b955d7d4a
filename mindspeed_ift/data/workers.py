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
from mindspeed_ift.data.conversation import Conversation, DropRecord, PreferencePair, RolloutPrompt
from mindspeed_ift.data.encode import SAMPLE_COLUMNS, Encoded, EncodeOptions, StopRun
from mindspeed_ift.data.encode_pairs import PAIR_COLUMNS, EncodedPair, encode_pairs
from mindspeed_ift.data.encode_rollouts import EncodedRollout, encode_rollouts
from mindspeed_ift.data.encode_texts import EncodedTexts, encode_texts
from mindspeed_ift.data.fast_tokenizer import PACKAGE, is_installed
from mindspeed_ift.data.formats import OPTIONAL_COLUMNS, Format
from mindspeed_ift.data.indexed import WEIGHTS
from mindspeed_ift.data.learning import plain_weights
from mindspeed_ift.data.ledger import Ledger
from mindspeed_ift.data.records import Origin, Record
from mindspeed_ift.data.rollout_formats import RolloutFormat
from mindspeed_ift.data.template_choice import get_template, make_encoder
from mindspeed_ift.data.template_files import Row
from mindspeed_ift.data.text_formats import TextFormat
from mindspeed_ift.data.tokenizer import Tokenizer, load_tokenizer

CHUNK = 500
"""Records a worker takes at a time."""
PROOF = 100
"""Records on which a fast encoder is held to the exact one."""

Chunk = list[tuple[Record, Origin]]
Converted = Conversation | PreferencePair | RolloutPrompt | list[str]
Result = Encoded | EncodedPair | EncodedRollout | EncodedTexts
Encode = Callable[[Sequence[Any]], Sequence[Result | DropRecord]]


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
        self._encode_all: Encode
        form, options = job.form, job.options
        if isinstance(form, TextFormat):
            self._columns = form.json_keys
            self._encode_all = partial(encode_texts, tokenizer, options, job.pad_to_multiple_of, form.json_keys)
            return
        encoder = make_encoder(get_template(job.template, job.template_row), tokenizer, options)
        self.tokenizer = encoder.tokenizer
        if form.makes_pairs:
            self._columns, self._encode_all = PAIR_COLUMNS, partial(encode_pairs, encoder)
        elif isinstance(form, RolloutFormat):
            self._columns = ("input_ids", *form.kept)
            self._encode_all = partial(encode_rollouts, encoder, kept=form.kept)
        else:
            self._columns, self._encode_all = SAMPLE_COLUMNS, encoder.encode

    def encode(self, chunk: Chunk) -> EncodedChunk:
        """Encode a chunk; records that are no samples stand in the ledger."""
        ledger = Ledger(read=len(chunk))
        for record, _ in chunk:
            ledger.columns.update(record)
            ledger.filled.update(column for column in OPTIONAL_COLUMNS if record.get(column))
        converted = [self._convert(record) for record, _ in chunk]
        encoded = iter(self._encode_all([one for one in converted if not isinstance(one, DropRecord)]))
        found: list[Result] = []
        for one, (_, origin) in zip(converted, chunk):
            result = one if isinstance(one, DropRecord) else next(encoded)
            if isinstance(result, StopRun):
                raise UserError(f"{origin}: {result}")
            if isinstance(result, DropRecord):
                ledger.drop(origin, str(result), malformed=result.malformed, cut_tokens=result.cut_tokens)
                continue
            found.append(result)
            ledger.keep(
                origin,
                result.notes,
                samples=result.documents,
                tokens=result.tokens,
                learnt_tokens=result.learnt_tokens,
                cut_tokens=result.cut_tokens,
            )
        return _joined(found, self._columns, ledger)

    def prove(self, chunk: Chunk) -> str | None:
        """Hold the fast encoder to the exact one on these records; the first text for which their ids differ."""
        fast = self.tokenizer.fast
        assert fast is not None
        fast.proving = True
        self.encode(chunk)
        fast.proving = False
        return fast.difference

    def _convert(self, record: Record) -> Converted | DropRecord:
        try:
            return self.job.form.convert(record)
        except DropRecord as reason:
            return reason


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


def _joined(found: Sequence[Result], names: Sequence[str], ledger: Ledger) -> EncodedChunk:
    of_each = [result.columns for result in found]
    columns = {name: [document for columns in of_each for document in columns[name]] for name in names}
    if weights := _weights(found):
        columns[WEIGHTS] = weights
    return EncodedChunk(
        {name: np.concatenate(column) if column else np.zeros(0, np.int32) for name, column in columns.items()},
        {name: np.array([len(document) for document in column], np.int32) for name, column in columns.items()},
        ledger,
    )


def _weights(found: Sequence[Result]) -> list[np.ndarray]:
    """Of all samples, if one of them has some."""
    samples = [sample for result in found if isinstance(result, Encoded) for sample in result.samples]
    if all(sample.loss_weights is None for sample in samples):
        return []
    return [plain_weights(one.labels) if one.loss_weights is None else one.loss_weights for one in samples]
