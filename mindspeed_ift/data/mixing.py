"""Several datasets in, one stream out: one after the other, or drawn from in turn or by weight.

The order is that of Hugging Face's ``interleave_datasets`` for datasets in memory, which LLaMA-Factory and
MindSpeed-LLM use, for the same seed; here every dataset is read as a stream, one record ahead.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.records import Origin, Readable, Record, read_records

Item = TypeVar("Item")
_DRAWS = 1000
"""Drawn at a time by ``interleave_datasets``; another number would draw other datasets for the same seed."""


class Source(Generic[Item]):
    """One dataset of a mixture.

    Args:
        name: As the user gave it.
        read: Starts at its first record, every time it is called.
        most: Only so many records of it are taken (``--max-samples``); None for all.
    """

    def __init__(self, name: str, read: Callable[[], Iterator[Item]], most: int | None = None) -> None:
        self.name = name
        self.taken = 0
        """Records taken, repeated ones counted again."""
        self.rounds = 0
        """How often it was begun."""
        self.exhausted = False
        """Whether its last record was taken, at least once."""
        self._read, self._most = read, most
        self._stream: Iterator[Item] = iter(())
        self._ahead: Item | None = None

    def stream(self) -> Iterator[Item]:
        """All its records, once."""
        self.rounds += 1
        for item in itertools.islice(self._read(), self._most):
            self.taken += 1
            yield item
        self.exhausted = True

    def take(self) -> Item:
        """The next record; after the last one the first again.

        Raises:
            UserError: It holds none.
        """
        if self._ahead is None:
            self._stream = itertools.islice(self._read(), self._most)
            self._ahead = next(self._stream, None)
            self.rounds += 1
        item = self._ahead
        if item is None:
            raise UserError(
                f"no records in {self.name}, so nothing can be interleaved with it; leave it out of --input"
            )
        self._ahead = next(self._stream, None)
        self.taken += 1
        self.exhausted = self.exhausted or self._ahead is None
        return item


def read_datasets(
    datasets: Sequence[tuple[str, Sequence[Readable]]], config: PreprocessConfig
) -> Mixture[tuple[Record, Origin]]:
    """The records of the datasets that ``--input`` names, mixed as asked for.

    Args:
        datasets: Name and files of each, see `find_datasets`.
        config: What to take, and how.

    Raises:
        UserError: See `Mixture`.
    """
    sources = [Source(name, partial(read_records, files), config.max_samples) for name, files in datasets]
    return Mixture(sources, config)


class Mixture(Generic[Item]):
    """The stream of several datasets. Can be gone through once.

    Args:
        sources: The datasets, in the order given.
        config: Strategy, probabilities and seed.

    Raises:
        UserError: These do not go with the number of datasets.
    """

    def __init__(self, sources: Sequence[Source[Item]], config: PreprocessConfig) -> None:
        self.sources = sources
        self.strategy = config.mix_strategy
        self._probabilities = config.probabilities()
        self._seed = config.seed
        if self.strategy != "concat" and len(sources) < 2:
            raise UserError(
                f"--mix-strategy {self.strategy} mixes several datasets, --input names one ({sources[0].name}); name"
                " more, or leave --mix-strategy out"
            )
        if self._probabilities is not None and len(self._probabilities) != len(sources):
            raise UserError(
                f"--interleave-probs has {len(self._probabilities)} numbers for {len(sources)} datasets of --input"
                f" ({', '.join(source.name for source in sources)}); give one for each"
            )

    def __iter__(self) -> Iterator[Item]:
        if self.strategy == "concat":
            for source in self.sources:
                yield from source.stream()
            return
        enough = any if self.strategy == "interleave_under" else all
        for numbers in self._turns():
            if enough(source.exhausted for source in self.sources):
                return
            for number in numbers:
                yield self.sources[number].take()

    def notices(self) -> Iterator[str]:
        """Which datasets were not taken whole, or more than once: a line each, after the end of the stream."""
        for source in self.sources:
            said = f"{source.name}: {source.taken:,} records taken"
            if source.rounds > 1:
                yield f"{said}, its records up to {source.rounds} times (--mix-strategy {self.strategy})"
            elif not source.exhausted:
                yield f"{said}, the rest left out since another dataset had ended (--mix-strategy {self.strategy})"
            elif source.taken == source._most:
                yield f"{said}, which is all that --max-samples allows"

    def _turns(self) -> Iterator[Sequence[int]]:
        """Numbers of the datasets to take from before looking again whether to stop."""
        if self._probabilities is None:
            yield from itertools.repeat(range(len(self.sources)))
            return
        generator = np.random.default_rng(self._seed)
        while True:
            for number in generator.choice(len(self.sources), size=_DRAWS, p=self._probabilities).tolist():
                yield (number,)
