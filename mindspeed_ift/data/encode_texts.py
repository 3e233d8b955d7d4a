"""Plain texts in, documents out: their ids, cut or split where they are too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mindspeed_ift.data.conversation import DropRecord
from mindspeed_ift.data.encode import CUT_NOTE, SPLIT_NOTE, EncodeOptions, check_limit, check_room
from mindspeed_ift.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class EncodedTexts:
    """The documents that the texts of one record become, all of which is learnt.

    Attributes:
        columns: Column -> its documents, int32 ``[n]`` each: one, or several where the text is split.
        notes: Rows of the ledger: what was cut or split.
        cut_tokens: How many tokens were cut.
    """

    columns: dict[str, list[np.ndarray]]
    notes: tuple[str, ...] = ()
    cut_tokens: int = 0

    @property
    def documents(self) -> int:
        """Of the column that has the most."""
        return max(map(len, self.columns.values()))

    @property
    def tokens(self) -> int:
        """Of all documents."""
        return sum(len(document) for column in self.columns.values() for document in column)

    learnt_tokens = tokens


def encode_texts(
    tokenizer: Tokenizer,
    options: EncodeOptions,
    multiple: int,
    columns: Sequence[str],
    records: Sequence[Sequence[str]],
) -> list[EncodedTexts | DropRecord]:
    """One result a record, in order: its documents, or why it has none.

    Args:
        tokenizer: Text -> ids.
        options: Its ``room`` cuts or splits, its ``limit`` drops.
        multiple: The length of a document is a multiple of it: pads stand in front of the end, which is the last token.
        columns: Their names.
        records: The text of each column.
    """

    def ids(text: str) -> np.ndarray:
        found, end = tokenizer.encode(text), [tokenizer.eod_id] * options.append_eod
        pads = multiple - len(found) % multiple - len(end) if multiple > 1 else 0
        return np.array([*found, *[tokenizer.vocab_size] * pads, *end], np.int32)

    results: list[EncodedTexts | DropRecord] = []
    for texts in records:
        try:
            results.append(_fitted(dict(zip(columns, map(ids, texts))), options))
        except DropRecord as reason:
            results.append(reason)
    return results


def _fitted(columns: dict[str, np.ndarray], options: EncodeOptions) -> EncodedTexts:
    whole, longest = sum(map(len, columns.values())), max(map(len, columns.values()))
    check_limit(options, longest, whole)
    check_room(options, longest, whole)
    if options.room is None or longest <= options.room:
        return EncodedTexts({name: [ids] for name, ids in columns.items()})
    splits = options.overlong == "split"
    pieces = {name: pieces_of(ids, splits, options.room) for name, ids in columns.items()}
    found = EncodedTexts(pieces, (SPLIT_NOTE if splits else CUT_NOTE,))
    return replace(found, cut_tokens=whole - found.tokens)


def pieces_of(ids: np.ndarray, split: bool, room: int) -> list[np.ndarray]:
    """Pieces of plain text: int32 of at most ``room`` tokens, all of them or the first one only."""
    return [ids[start : start + room] for start in range(0, len(ids) if split else 1, room)]
