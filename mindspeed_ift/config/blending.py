"""The words of ``--data-path`` in, datasets and their weights out: prefixes alone, or weight and prefix in turn."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from mindspeed_ift.config.errors import UserError


def named_datasets(flag: str, words: Sequence[str]) -> tuple[tuple[str, ...], tuple[Fraction, ...] | None]:
    """Prefixes in the order given, and their weights; None: each dataset weighs as much as it has samples.

    Args:
        flag: for messages.
        words: ``p1 p2``, or ``0.3 p1 0.7 p2``, as Megatron takes them. A word that is a number is a weight.

    Raises:
        UserError: a weight is missing, or not positive.
    """
    weights = [_number(word) for word in words]
    if not any(weight is not None for weight in weights):
        return tuple(words), None
    prefixes, given = words[1::2], weights[::2]
    remedy = "give weight and prefix in turn, as 0.3 data/a 0.7 data/b, or prefixes alone"
    if any(weight is not None for weight in weights[1::2]) or None in given or len(prefixes) != len(given):
        raise UserError(f"{flag} {' '.join(words)}: not every dataset has its weight; {remedy}")
    for word, weight in zip(words[::2], given):
        if weight is None or weight <= 0:
            raise UserError(f"{flag}: the weight {word} is not over 0; leave the dataset out, or give it a share")
    return tuple(prefixes), tuple(weight for weight in given if weight is not None)


def _number(word: str) -> Fraction | None:
    """None: the word is none, so that it is a prefix."""
    try:
        return Fraction(word)
    except (ValueError, ZeroDivisionError):
        # "nan" and "inf" are numbers to others, and no one's prefix.
        return Fraction(-1) if word.lower().lstrip("+-") in ("nan", "inf", "infinity") else None
