"""Turns of token ids in, turns that fit a length out: the rules by which LLaMA-Factory cuts a conversation."""

from __future__ import annotations

from collections.abc import Callable

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
