"""Documents in, figures out: lengths, fill, what is learnt, and which samples are odd. One pass over the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mindspeed_ift.data.boundaries import PAD_SEGMENT, spelled
from mindspeed_ift.data.show.opening import ShownDataset

_TOKENS_AT_ONCE = 1 << 20
_LONGEST_PERIOD = 8
_LONG_RUN = 100
_MANY_REPLACED = 3
_RARE_SHARE = 0.05
_FEWEST_FOR_RARE = 20
_LEAST_LEARNT, _MOST_LEARNT = 0.01, 0.99
_FENCE = 3.0
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Survey:
    """What all documents of a dataset come to.

    Attributes:
        document: int64 ``[samples]``: in which each sample stands.
        place: int64 ``[samples]``: its number there, from 1.
        length: int64 ``[samples]``: its tokens.
        learnt: int64 ``[samples]``: those of them that are learnt.
        replaced: int64 ``[samples]``: its replacement characters (U+FFFD), which stand for lost text.
        run: int64 ``[samples]``: tokens of its longest run that repeats itself with a period of up to 8 tokens.
        row: int64 ``[documents]``: tokens of each document, pads too.
        filled: int64 ``[documents]``: those that are no pads.
    """

    document: np.ndarray
    place: np.ndarray
    length: np.ndarray
    learnt: np.ndarray
    replaced: np.ndarray
    run: np.ndarray
    row: np.ndarray
    filled: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """float64 ``[samples]``: learnt tokens of each sample, 0 to 1."""
        return self.learnt / np.maximum(self.length, 1)

    def longest(self, count: int) -> np.ndarray:
        """Numbers of the ``count`` longest samples, the longest first: int64 ``[count]``."""
        return np.argsort(-self.length, kind="stable")[:count]


@dataclass(frozen=True)
class Oddity:
    """A reason to look at a sample.

    Attributes:
        name: What is odd, for the page.
        samples: int64 ``[k]``: numbers of the samples, the oddest first.
        detail: Sample number -> what is odd about that one.
    """

    name: str
    samples: np.ndarray
    detail: Callable[[int], str]


def survey(dataset: ShownDataset) -> Survey:
    """Read all tokens once, some documents at a time.

    Args:
        dataset: Of any size: memory is that of a few numbers a sample.
    """
    replacement = _Replacement(
        np.array(dataset.tokenizer.ids_that_hold(_REPLACEMENT), np.int64), dataset.tokenizer.encode(_REPLACEMENT)
    )
    blocks = [_block(dataset, numbers, replacement) for numbers in _blocks(dataset.lengths)]
    joined = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return Survey(**joined)


def oddities(found: Survey) -> list[Oddity]:
    """The reasons to look at samples, those of which there are any.

    * Nothing of it is learnt.
    * Nearly nothing or nearly all is (under 1 %, over 99 %), where that is rare: at most one sample in twenty.
    * It holds three replacement characters or more: text was lost before it got here.
    * It holds a run of a hundred tokens or more that repeats itself with a period of up to eight.
    * Its length is rare: outside of Tukey's outer fences (three times the distance of the quartiles) of the logarithm.
    """
    share, length = found.share, found.length
    extreme = (found.learnt > 0) & ((share < _LEAST_LEARNT) | (share > _MOST_LEARNT))
    if np.count_nonzero(extreme) > _RARE_SHARE * len(extreme):
        extreme[:] = False
    logs = np.log(np.maximum(length, 1))
    first, third = np.quantile(logs, (0.25, 0.75))
    beyond = np.maximum(logs - third, first - logs) - _FENCE * (third - first)
    rare = (beyond > 0) & (len(length) >= _FEWEST_FOR_RARE)
    cases = [
        Oddity("nothing of it is learnt", _worst(found.learnt == 0, length), lambda n: f"0 of {length[n]:,} tokens"),
        Oddity(
            "nearly nothing or nearly all of it is learnt",
            _worst(extreme, np.abs(share - 0.5)),
            lambda n: f"{share[n]:.1%} learnt",
        ),
        Oddity(
            "replacement characters: text was lost before",
            _worst(found.replaced >= _MANY_REPLACED, found.replaced),
            lambda n: f"{found.replaced[n]:,} times {_REPLACEMENT}",
        ),
        Oddity(
            "a long run that repeats itself",
            _worst(found.run >= _LONG_RUN, found.run),
            lambda n: f"{found.run[n]:,} tokens",
        ),
        Oddity("a rare length", _worst(rare, beyond), lambda n: f"{length[n]:,} tokens"),
    ]
    return [case for case in cases if len(case.samples)]


def _worst(chosen: np.ndarray, weight: np.ndarray) -> np.ndarray:
    samples = np.flatnonzero(chosen)
    return samples[np.argsort(-np.asarray(weight)[samples], kind="stable")]


def _blocks(lengths: np.ndarray) -> Iterator[range]:
    """Runs of documents with about a million tokens each."""
    ends = np.cumsum(lengths, dtype=np.int64)
    start = 0
    while start < len(lengths):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _TOKENS_AT_ONCE, side="right")))
        yield range(start, stop)
        start = stop


@dataclass(frozen=True)
class _Replacement:
    """How the tokenizer writes U+FFFD: as a part of these tokens, or as this sequence of tokens."""

    tokens: np.ndarray
    sequence: list[int]

    def ends(self, ids: np.ndarray) -> np.ndarray:
        """bool ``[n]``: where one ends."""
        found = np.isin(ids, self.tokens)
        if len(self.sequence) > 1:
            found[len(self.sequence) - 1 :] |= spelled(ids, self.sequence)
        return found


def _block(dataset: ShownDataset, numbers: range, replacement: _Replacement) -> dict[str, np.ndarray]:
    documents = [dataset[number] for number in numbers]
    ids = np.concatenate([document.input_ids for document in documents])
    learnt = np.concatenate([document.learnt for document in documents])
    segments = np.concatenate([document.segments for document in documents])
    row = np.array([len(document.input_ids) for document in documents], np.int64)
    of_document = np.repeat(np.arange(len(row)), row)
    filled = np.bincount(of_document, segments != PAD_SEGMENT, len(row)).astype(np.int64)
    change = np.ones(len(ids), bool)
    change[1:] = (segments[1:] != segments[:-1]) | (of_document[1:] != of_document[:-1])
    starts = np.flatnonzero(change)
    sample = np.cumsum(change) - 1
    real = segments[starts] != PAD_SEGMENT
    first = np.flatnonzero(np.diff(of_document[starts], prepend=-1))
    counted = np.cumsum(real)
    place = counted - np.repeat(counted[first] - real[first], np.diff([*first, len(starts)]))
    figures = {
        "document": numbers.start + of_document[starts],
        "place": place,
        "length": np.diff([*starts, len(ids)]),
        "learnt": _sums(learnt, starts),
        "replaced": _sums(replacement.ends(ids), starts),
        "run": _longest_runs(ids, sample, len(starts)),
    }
    return {**{name: values[real] for name, values in figures.items()}, "row": row, "filled": filled}


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.add.reduceat(values, starts, dtype=np.int64) if len(starts) else np.zeros(0, np.int64)


def _longest_runs(ids: np.ndarray, sample: np.ndarray, samples: int) -> np.ndarray:
    """Tokens of the longest run of each sample in which every token is the one a period before: int64 ``[samples]``."""
    longest = np.zeros(samples, np.int64)
    for period in range(1, _LONGEST_PERIOD + 1):
        same = np.zeros(len(ids) + 1, bool)
        same[period:-1] = (ids[period:] == ids[:-period]) & (sample[period:] == sample[:-period])
        borders = np.flatnonzero(np.diff(same, prepend=False))
        starts, stops = borders[::2], borders[1::2]
        np.maximum.at(longest, sample[starts], stops - starts + period)
    return longest
