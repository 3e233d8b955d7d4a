"""Turns of token ids in, turns that fit a length out: the rules by which LLaMA-Factory cuts a conversation; and where a
conversation is split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from mindspeed_ift.data.conversation import Conversation, Role
from mindspeed_ift.data.templates import Rules

Pair = tuple[list[int], list[int]]
"""Token ids of a prompt and of its answer."""


def split_proportional(source: int, target: int, room: int) -> tuple[int, int]:
    """Lengths of prompt and answer that fit ``room`` tokens: the answer its share, at least one (LLaMA-Factory
    0.8.2)."""
    most_target = max(int(room * (target / max(source + target, 1))), 1)
    target = min(target, most_target)
    return min(source, room - target), target


def split_balanced(source: int, target: int, room: int) -> tuple[int, int]:
    """Lengths that fit ``room``: a side shorter than half of it is kept whole (later LLaMA-Factory's infer_seqlen)."""
    if target * 2 < room:
        most_target = room
    elif source * 2 < room:
        most_target = room - source
    else:
        most_target = int(room * (target / (source + target)))
    target = min(target, most_target)
    return min(source, max(room - target, 0)), target


SPLIT: dict[Rules, Callable[[int, int, int], tuple[int, int]]] = {
    Rules.LLAMA_FACTORY_0_8: split_proportional,
    Rules.LLAMA_FACTORY_0_9: split_balanced,
}


def cut_turns(pairs: list[Pair], cutoff: int, split: Callable[[int, int, int], tuple[int, int]]) -> list[Pair]:
    """Cut turns to ``cutoff`` tokens together: each takes from what is left, and those after it vanish."""
    kept: list[Pair] = []
    total = 0
    for pair in pairs:
        if total >= cutoff:
            break
        pair = cut_turn(pair, split(len(pair[0]), len(pair[1]), cutoff - total))
        total += len(pair[0]) + len(pair[1])
        kept.append(pair)
    return kept


def cut_turn(pair: Pair, lengths: tuple[int, int]) -> Pair:
    """The first tokens of prompt and answer."""
    return pair[0][: lengths[0]], pair[1][: lengths[1]]


def split_at_questions(
    conversation: Conversation, lengths: Sequence[int], room: int, fits: Callable[[Conversation], bool]
) -> list[Conversation]:
    """Parts of a conversation that fit, each as long as possible, with the same system prompt and tools.

    A part begins with a question of the user, never with the result of a tool whose call stands in another part. One
    question with all that follows from it stays together even if it does not fit.

    Args:
        conversation: That does not fit.
        lengths: Tokens of each of its turns as it stands there.
        room: Most tokens of a part; bounds what is tried.
        fits: Whether a part does, written by itself.
    """
    messages = conversation.messages
    later = [place for place in range(2, len(messages), 2) if messages[place].role is Role.USER]
    borders = [0, *later, len(messages)]
    ends = [0, *accumulate(lengths)] if len(lengths) * 2 == len(messages) else [0] * (len(messages) // 2 + 1)

    def part(first: int, last: int) -> Conversation:
        return Conversation(messages[borders[first] : borders[last]], conversation.system, conversation.tools)

    parts = []
    first = 0
    while first < len(borders) - 1:
        least = first + 1
        within = [
            last for last in range(least, len(borders)) if ends[borders[last] // 2] - ends[borders[first] // 2] <= room
        ]
        # A turn that comes first may lack what separates turns, so one question more than the sum says might fit.
        most = min(max(within, default=first) + 1, len(borders) - 1)
        while least < most:
            middle = (least + most + 1) // 2
            least, most = (middle, most) if fits(part(first, middle)) else (least, middle - 1)
        parts.append(part(first, least))
        first = least
    return parts
