"""Conversations held out in, questions and their right answers out: as text, as ids, and as what training would learn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from mindspeed_ift.data.conversation import Conversation, DropRecord
from mindspeed_ift.data.encode import Encoder
from mindspeed_ift.data.reading import Converted
from mindspeed_ift.data.sample import Sample


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


def make_items(conversations: Iterable[Converted], encoder: Encoder) -> tuple[list[Item], Counter[str]]:
    """Write conversations with a template.

    Returns:
        An item for each that can be written, and how many are left out for which reason.
    """
    items, left_out = [], Counter[str]()
    for origin, conversation in conversations:
        try:
            if isinstance(conversation, DropRecord):
                raise conversation
            items.append(_item(origin, conversation, encoder))
        except DropRecord as reason:
            left_out[str(reason)] += 1
    return items, left_out


def _item(origin: str, conversation: Conversation, encoder: Encoder) -> Item:
    (encoded,) = encoder.encode([conversation])
    if isinstance(encoded, DropRecord):
        raise encoded
    *before, answer = conversation.messages
    prompt = encoder.prompt_ids(before, conversation.system, conversation.tools)
    question = before[-1].content or "\n".join(before[-1].results)
    return Item(origin, question, answer.content, prompt, encoded.samples[-1])
