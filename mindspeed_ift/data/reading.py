"""Flags in, the conversations of the records out, for those who look at them and prepare no dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.conversation import Conversation, DropRecord, PreferencePair, RolloutPrompt
from mindspeed_ift.data.formats import PEEKED, Format, make_format
from mindspeed_ift.data.inputs import find_datasets
from mindspeed_ift.data.records import Origin, Record, read_records
from mindspeed_ift.data.text_formats import TextFormat

Converted = tuple[str, Conversation | DropRecord]
"""Where a record comes from, and its conversation or why it has none."""


def open_conversations(config: PreprocessConfig, most: int | None) -> tuple[Format, Iterator[Converted]]:
    """How the records of ``--input`` are read, and the conversation of each.

    Args:
        config: Input, handler and columns.
        most: Only so many records; None for all.

    Raises:
        UserError: No file, no record, or plain text.
    """
    datasets = find_datasets(config.input)
    records = islice((pair for _, files in datasets for pair in read_records(files)), most)
    names, first = ", ".join(name for name, _ in datasets), list(islice(records, PEEKED))
    if not first:
        raise UserError(f"no records in {names}; give --input a file that holds some")
    form = make_format(
        config.handler_name, config.mapped_keys(), config.json_keys, [record for record, _ in first], names
    )
    if isinstance(form, TextFormat):
        raise UserError(f"{names} holds plain text, which no template writes; give conversations")
    return form, conversations_of(form, chain(first, records))


def conversations_of(form: Format, records: Iterable[tuple[Record, Origin]]) -> Iterator[Converted]:
    """The conversation of each record, the chosen one of a preference pair, or why it has none."""
    assert not isinstance(form, TextFormat)
    for record, origin in records:
        try:
            found = form.convert(record)
            found = found.chosen if isinstance(found, PreferencePair) else found
            yield str(origin), found.conversation if isinstance(found, RolloutPrompt) else found
        except DropRecord as reason:
            yield str(origin), reason
