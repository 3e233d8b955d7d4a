"""What --data-path names: prefixes alone, or weight and prefix in turn."""

from __future__ import annotations

from fractions import Fraction

import pytest

from mindspeed_ift.config.blending import named_datasets
from mindspeed_ift.config.errors import UserError


@pytest.mark.parametrize(
    ("words", "prefixes", "weights"),
    [
        ("data/a", ("data/a",), None),
        ("a b a", ("a", "b", "a"), None),
        ("0.3 a 0.7 b", ("a", "b"), (Fraction(3, 10), Fraction(7, 10))),
        ("30 a 1e1 a", ("a", "a"), (Fraction(30), Fraction(10))),
        ("2 a", ("a",), (Fraction(2),)),
        ("./2024 b", ("./2024", "b"), None),
        ("", (), None),
    ],
)
def test_prefixes_and_weights(words: str, prefixes: tuple[str, ...], weights: tuple[Fraction, ...] | None) -> None:
    assert named_datasets("--data-path", words.split()) == (prefixes, weights)


@pytest.mark.parametrize("words", ["0.3 a b", "a 0.3 b 0.7", "0.3 a 0.7", "0.3 0.7 a b", "0.3", "0.3 a b c", "a 2"])
def test_a_weight_that_is_missing(words: str) -> None:
    with pytest.raises(
        UserError, match="--data-path .*: not every dataset has its weight; give weight and prefix in turn"
    ):
        named_datasets("--data-path", words.split())


@pytest.mark.parametrize("weight", ["0", "-0.3", "nan", "inf", "-inf", "0.0"])
def test_a_weight_that_is_no_share(weight: str) -> None:
    with pytest.raises(UserError, match=f"--valid-data-path: the weight {weight} is not over 0"):
        named_datasets("--valid-data-path", ["0.7", "a", weight, "b"])
