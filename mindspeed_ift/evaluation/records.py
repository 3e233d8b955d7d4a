"""Held-out records in, questions and their right answers out: as text, as ids, and as what training would learn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.evaluation import EvaluateConfig
from mindspeed_ift.data.certify import samples_of
from mindspeed_ift.data.conversation import Conversation, DropRecord
from mindspeed_ift.data.encode import Encoder
from mindspeed_ift.data.formats import PEEKED, make_format
from mindspeed_ift.data.records import find_datasets, read_records
from mindspeed_ift.data.sample import Sample
from mindspeed_ift.data.text_formats import TextFormat


@dataclass(frozen=True)
class Item:
    """One record.

    Attributes:
        origin: file and number.
        question: the user's last words.
        reference: the answer that the record gives.
        prompt: ids of all up to where the model answers.
        sample: the whole conversation, every answer learnt.
    """

    origin: str
    question: str
    reference: str
    prompt: list[int]
    sample: Sample


def read_conversations(config: EvaluateConfig) -> list[tuple[str, Conversation | DropRecord]]:
    """The conversation of each record of ``--input``, or why it has none.

    Raises:
        UserError: no file, no record, or plain text.
    """
    datasets = find_datasets(config.input)
    records = islice((pair for _, files in datasets for pair in read_records(files)), config.max_samples)
    first = list(islice(records, PEEKED))
    names = ", ".join(name for name, _ in datasets)
    if not first:
        raise UserError(f"--input {names} has no records")
    keys = config.preparation()
    form = make_format(config.handler_name, keys.mapped_keys(), keys.json_keys, [record for record, _ in first], names)
    if isinstance(form, TextFormat):
        raise UserError(f"{names} holds plain text, which asks nothing; give conversations")
    return list(samples_of(form, chain(first, records)))


def make_items(
    conversations: list[tuple[str, Conversation | DropRecord]], encoder: Encoder
) -> tuple[list[Item], Counter[str]]:
    """Write conversations with a template.

    Returns:
        An item for each that can be written, and how many are left out for which reason.
    """
    items, left_out = [], Counter[str]()
    for origin, conversation in conversations:
        try:
            if isinstance(conversation, DropRecord):
                raise conversation
            items += _items(origin, conversation, encoder)
        except DropRecord as reason:
            left_out[str(reason)] += 1
    return items, left_out


def _items(origin: str, conversation: Conversation, encoder: Encoder) -> Iterator[Item]:
    (encoded,) = encoder.encode([conversation])
    if isinstance(encoded, DropRecord):
        raise encoded
    *before, answer = conversation.messages
    prompt = encoder.prompt_ids(before, conversation.system, conversation.tools)
    question = before[-1].content or "\n".join(before[-1].results)
    yield Item(origin, question, answer.content, prompt, encoded.samples[-1])
