"""One conversation in, the first difference out between what training writes and what the chat template would show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import zip_longest

from mindspeed_ift.data.conversation import Conversation, DropRecord, parse_tools
from mindspeed_ift.data.cutting import Pair
from mindspeed_ift.data.encode import Encoder
from mindspeed_ift.data.hf_template import ChatTemplateEncoder, render_chat
from mindspeed_ift.data.tool_formats import wrapped

REFUSED = "the chat template refuses the record"
TOKENS = "the same text in other tokens"
THOUGHTS = "thoughts"
TOOLS = "tools and system prompt"
SYSTEM = "system prompt, or what opens the conversation"
PROMPT = "a prompt"
HISTORY = "an answer that is history"
ANSWER = "the last answer"
ENDING = "what follows the last answer"

WHOLE = "the whole conversation"
"""Where every prompt is equal and yet something differs: an answer, or what follows it."""

_BEFORE, _AFTER = 3, 12
_SIGNS_OF_THOUGHT = ("<think>", "</think>")


@dataclass(frozen=True)
class Difference:
    """Where training and the chat template part.

    Attributes:
        kind: Of the difference, one of the phrases above.
        where: Number of the prompt, or `WHOLE`.
        trained: Ids that training wrote.
        served: Ids that the chat template writes; none where it refuses.
        position: First place at which they differ.
        reason: Of a refusal.
    """

    kind: str
    where: str
    trained: list[int]
    served: list[int]
    position: int
    reason: str = ""

    def aligned(self) -> list[tuple[list[int], list[int]]]:
        """The ids around the first difference, side by side: equal ones in one row, of the others as they come."""
        start = max(self.position - _BEFORE, 0)
        trained, served = (ids[start : self.position + _AFTER] for ids in (self.trained, self.served))
        rows: list[tuple[list[int], list[int]]] = []
        for _, a, a_end, b, b_end in SequenceMatcher(None, trained, served, autojunk=False).get_opcodes():
            pairs = zip_longest(trained[a:a_end], served[b:b_end])
            rows += [([x] if x is not None else [], [y] if y is not None else []) for x, y in pairs]
        return rows


def compare(
    encoder: Encoder, conversation: Conversation, turns: Sequence[Pair], serve_with: Mapping[str, bool | str]
) -> Difference | None:
    """The first difference, prompt by prompt and then as a whole; None where there is none.

    What follows the last answer may differ in white space: generation has stopped there.

    Args:
        encoder: As training writes.
        conversation: Of the user's records.
        turns: Its `Encoder.turn_ids`.
        serve_with: Options for the chat template (``enable_thinking``); ``system``: a system prompt for conversations
            without one.

    Raises:
        DropRecord: A tool cannot be read.
    """
    options = {name: value for name, value in serve_with.items() if name != "system"}
    sent = _as_sent(encoder, conversation, str(serve_with.get("system", "")))
    last = len(turns) - 1
    # With only the last answer learnt, the tokenizer's own template writes all before it as one prompt.
    joined = len(sent.messages) // 2 - len(turns)
    places: list[tuple[int, str]] = []
    trained: list[int] = []
    for number, (source, target) in enumerate(turns):
        trained = trained + source
        places.append((len(trained), PROMPT))
        if number == last or not encoder.options.mask_history:
            count = number + joined + 1
            part = replace(sent, messages=sent.messages[: 2 * count - 1])
            found = _differ(encoder, part, trained, options, f"prompt {count}", places)
            if found:
                return found
        trained = trained + target
        places.append((len(trained), HISTORY if number < last else ANSWER))
    return _differ(encoder, sent, trained, options, WHOLE, places)


def _differ(
    encoder: Encoder,
    conversation: Conversation,
    trained: list[int],
    options: Mapping[str, bool | str],
    where: str,
    places: list[tuple[int, str]],
) -> Difference | None:
    """
    Args:
        encoder: As training writes.
        conversation: As it is sent; ends in a prompt, or in an answer.
        trained: Ids of training up to there.
        options: For the chat template.
        where: For the difference.
        places: Where each part of the ids ends, and what it is.
    """
    tokenizer, asks = encoder.tokenizer, len(conversation.messages) % 2 == 1
    try:
        served = tokenizer.encode(render_chat(tokenizer, conversation, generation_prompt=asks, **options))
    except DropRecord as reason:
        return Difference(REFUSED, where, trained, [], 0, str(reason))
    if served == trained:
        return None
    shorter = min(len(served), len(trained))
    position = next((place for place in range(shorter) if served[place] != trained[place]), shorter)
    rest = tokenizer.decode(max(trained, served, key=len)[position:])
    if not asks and position == shorter and not rest.strip():
        return None
    kind = _kind(encoder, conversation, trained, served, position, places)
    return Difference(kind, where, trained, served, position)


def _kind(
    encoder: Encoder,
    conversation: Conversation,
    trained: list[int],
    served: list[int],
    position: int,
    places: list[tuple[int, str]],
) -> str:
    decode = encoder.tokenizer.decode
    if decode(trained) == decode(served):
        return TOKENS
    following = [decode(ids[position : position + _BEFORE]).lstrip() for ids in (trained, served)]
    if any(text.startswith(_SIGNS_OF_THOUGHT) for text in following):
        return THOUGHTS
    if conversation.messages[0].content not in decode(trained[:position]):
        return TOOLS if conversation.tools else SYSTEM
    return next((kind for end, kind in places if position < end), ENDING)


def _as_sent(encoder: Encoder, conversation: Conversation, system: str) -> Conversation:
    """The conversation as a client sends it: each tool wrapped as OpenAI does, and no thoughts where training has none.

    The tokenizer's own template is served what it was trained on, as it is.
    """
    messages = conversation.messages
    if isinstance(encoder, ChatTemplateEncoder):
        return conversation
    if encoder.template.thinking and encoder.options.enable_thinking == "false":
        thoughtless = (replace(one, content=encoder.template.without_thought(one.content)) for one in messages[1::2])
        messages = tuple(one for pair in zip(messages[::2], thoughtless) for one in pair)
    tools = parse_tools(conversation.tools) if conversation.tools.strip() else []
    described = json.dumps(list(map(wrapped, tools)), ensure_ascii=False) if tools else ""
    return Conversation(messages, conversation.system or system, described)
