"""Plain texts in, documents out: their ids, cut or split where they are too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mindspeed_ift.data.conversation import DropRecord
from mindspeed_ift.data.encode import (
    CUT_NOTE,
    ESCAPED_NOTE,
    SPECIAL_NOTE,
    SPLIT_NOTE,
    EncodeOptions,
    check_limit,
    check_room,
)
from mindspeed_ift.data.pieces import SpecialTokens
from mindspeed_ift.data.tokenizer import Tokenizer

EMPTY_NOTE = "one of its texts is empty"


@dataclass(frozen=True)
class EncodedTexts:
    """The documents that the texts of one record become, all of which is learnt.

    Attributes:
        columns: Column -> its documents, int32 ``[n]`` each: one, several where the text is split, none where it is
            empty.
        notes: Rows of the ledger: what was cut, split or empty.
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
        options: Its ``room`` cuts or splits, its ``limit`` drops; special tokens may be text like any other.
        multiple: The length of a document is a multiple of it: pads stand in front of the end, which is the last token.
        columns: Their names.
        records: The text of each column, one of them not empty.
    """

    special, escapes = SpecialTokens(tokenizer), options.escape_special_tokens

    def ids(text: str) -> np.ndarray:
        encode = tokenizer.encode_plain if escapes and special.stand_in(text) else tokenizer.encode
        found, end = encode(text), [tokenizer.eod_id] * options.append_eod
        pads = multiple - len(found) % multiple - len(end) if multiple > 1 else 0
        return np.array([*found, *[tokenizer.vocab_size] * pads, *end], np.int32)

    results: list[EncodedTexts | DropRecord] = []
    for texts in records:
        try:
            fitted = _fitted({name: ids(text) if text else None for name, text in zip(columns, texts)}, options)
            if any(map(special.stand_in, texts)):
                fitted = replace(fitted, notes=(*fitted.notes, ESCAPED_NOTE if escapes else SPECIAL_NOTE))
            results.append(fitted)
        except DropRecord as reason:
            results.append(reason)
    return results


def _fitted(columns: dict[str, np.ndarray | None], options: EncodeOptions) -> EncodedTexts:
    lengths = [len(ids) for ids in columns.values() if ids is not None]
    whole, longest = sum(lengths), max(lengths)
    check_limit(options, longest, whole)
    check_room(options, longest, whole)
    notes = (EMPTY_NOTE,) if len(lengths) < len(columns) else ()
    if options.room is None or longest <= options.room:
        return EncodedTexts({name: [] if ids is None else [ids] for name, ids in columns.items()}, notes)
    splits = options.overlong == "split"
    pieces = {name: [] if ids is None else pieces_of(ids, splits, options.room) for name, ids in columns.items()}
    found = EncodedTexts(pieces, (SPLIT_NOTE if splits else CUT_NOTE, *notes))
    return replace(found, cut_tokens=whole - found.tokens)


def pieces_of(ids: np.ndarray, split: bool, room: int) -> list[np.ndarray]:
    """Pieces of plain text: int32 of at most ``room`` tokens, all of them or the first one only."""
    return [ids[start : start + room] for start in range(0, len(ids) if split else 1, room)]
