"""Choosing tokens and stopping, with a model that is a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mindspeed_ift.inference.generate import generate
from mindspeed_ift.inference.sampling import Chooser, Sampling, choose, penalized

STOP = 9


class Table:
    """A model that says n + 1 after token n, and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.rows: list[int] = []

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Tensor:
        self.rows = [prompt[-1] for prompt in prompts]
        return self._logits()

    def step(self, tokens: Sequence[int]) -> Tensor:
        assert len(tokens) == len(self.rows)
        self.calls.append(list(tokens))
        self.rows = list(tokens)
        return self._logits()

    def agree(self, tokens: Sequence[int] | None) -> list[int]:
        assert tokens is not None
        return list(tokens)

    def keep(self, rows: Sequence[int]) -> None:
        self.rows = [self.rows[row] for row in rows]

    def _logits(self) -> Tensor:
        return torch.nn.functional.one_hot((torch.tensor(self.rows) + 1) % 10, 10).float()


def test_each_prompt_goes_on_until_its_own_stop() -> None:
    answers = generate(Table(), [[5], [1, 7], [9, 2]], [STOP], Sampling(max_new_tokens=5))
    assert answers == [[6, 7, 8], [8], [3, 4, 5, 6, 7]]


def test_finished_ones_leave_and_no_token_is_read_in_vain() -> None:
    table = Table()
    assert generate(table, [[7], [1, 2, 3]], [STOP], Sampling(max_new_tokens=3)) == [[8], [4, 5, 6]]
    assert table.calls == [[8, 4], [5]]


def test_a_stop_at_once_is_an_empty_answer() -> None:
    assert generate(Table(), [[8]], [STOP], Sampling()) == [[]]


def test_answers_are_told_as_they_grow() -> None:
    told: list[tuple[int, list[int]]] = []
    generate(Table(), [[6], [2]], [STOP], Sampling(max_new_tokens=2), lambda n, ids: told.append((n, list(ids))))
    assert told == [(0, [7]), (1, [3]), (0, [7, 8]), (1, [3, 4])]


def test_what_was_said_becomes_less_likely() -> None:
    """Tokens of the prompt count as well; the likeliest one left is taken."""
    logits = torch.tensor([[2.0, 1.9, -1.0, -1.2]])
    said = torch.tensor([[True, False, True, False]])
    assert torch.allclose(penalized(logits, said, 2.0), torch.tensor([[1.0, 1.9, -2.0, -1.2]]))
    chooser = Chooser(Sampling(repetition_penalty=1.2), [[0]])
    assert [chooser(logits)[0] for _ in range(3)] == [1, 0, 0]  # 1.9 > 2 / 1.2; then 2 / 1.2 > 1.9 / 1.2


def test_the_penalty_follows_its_rows() -> None:
    chooser = Chooser(Sampling(repetition_penalty=4.0), [[0], [1]])
    logits = torch.tensor([[2.0, 1.9, 1.0], [2.0, 1.9, 1.0]])
    assert chooser(logits) == [1, 0]
    chooser.keep([1])
    assert chooser(logits[:1]) == [2]


LOGITS = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))


def shares(count: int = 20_000, **options: float) -> list[float]:
    """How often each token is drawn."""
    drawn = choose(LOGITS.repeat(count, 1), Sampling(**options), torch.Generator().manual_seed(3))  # type: ignore[arg-type]
    return (torch.bincount(drawn, minlength=4) / count).tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, [0.25, 0.09, 0.0225, 0.0025]),
        ({"temperature": 1.0, "top_k": 2}, [0.5, 0.3, 0, 0]),
        ({"temperature": 1.0, "top_k": 9}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 1.0, "top_p": 0.79}, [0.5, 0.3, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.81}, [0.5, 0.3, 0.15, 0]),
        ({"temperature": 1.0, "top_p": 0.01}, [1, 0, 0, 0]),
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.6}, [0.5, 0.3, 0, 0]),
        ({"temperature": 0.0, "top_k": 3}, [1, 0, 0, 0]),
    ],
)
def test_draws_have_the_shares_of_the_formula(options: dict, expected: list[float]) -> None:
    """Of 20,000 draws; four standard deviations are 0.014."""
    total = sum(expected)
    for found, share in zip(shares(**options), expected, strict=True):
        assert found == pytest.approx(share / total, abs=0.014) and (found > 0) == (share > 0)


def test_a_seed_repeats_and_another_does_not() -> None:
    class Flat(Table):
        def _logits(self) -> Tensor:
            return torch.zeros(len(self.rows), 50)

    def answer(seed: int) -> list[list[int]]:
        return generate(Flat(), [[1], [1]], [], Sampling(max_new_tokens=12, temperature=1.0, seed=seed))

    assert answer(1) == answer(1) != answer(2)
    assert answer(1)[0] != answer(1)[1]
