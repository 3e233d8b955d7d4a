"""Choosing tokens and stopping, with a model that is a table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mindspeed_ift.inference.generate import Sampling, choose, generate, model_step
from tests.tiny_model import tiny_model, world_of_one

STOP = 9


def table(tokens: Tensor, lengths: Tensor) -> Tensor:
    """After token n comes n + 1."""
    last = tokens[torch.arange(len(lengths)), lengths - 1]
    return torch.nn.functional.one_hot((last + 1) % 10, 10).float()


def test_each_prompt_goes_on_until_its_own_stop() -> None:
    answers = generate(table, [[5], [1, 7], [9, 2]], [STOP], Sampling(max_new_tokens=5))
    assert answers == [[6, 7, 8], [8], [3, 4, 5, 6, 7]]


def test_rows_are_padded_on_the_right_and_finished_ones_leave() -> None:
    seen: list[tuple[list, list]] = []

    def watched(tokens: Tensor, lengths: Tensor) -> Tensor:
        seen.append((tokens.tolist(), lengths.tolist()))
        return table(tokens, lengths)

    generate(watched, [[7], [1, 2, 3]], [STOP], Sampling(max_new_tokens=3))
    assert seen == [
        ([[7, 0, 0], [1, 2, 3]], [1, 3]),
        ([[7, 8, 0, 0], [1, 2, 3, 4]], [2, 4]),
        ([[1, 2, 3, 4, 5]], [5]),
    ]


def test_a_stop_at_once_is_an_empty_answer() -> None:
    assert generate(table, [[8], []][:1], [STOP], Sampling()) == [[]]


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
    def flat(tokens: Tensor, _: Tensor) -> Tensor:
        return torch.zeros(len(tokens), 50)

    def answer(seed: int) -> list[list[int]]:
        return generate(flat, [[1], [1]], [], Sampling(max_new_tokens=12, temperature=1.0, seed=seed))

    assert answer(1) == answer(1) != answer(2)
    assert answer(1)[0] != answer(1)[1]


def test_pads_of_shorter_rows_do_not_matter() -> None:
    """The logits that are read are those of the last token of each row, as if it were alone."""
    with world_of_one() as groups:
        step = model_step(tiny_model(groups).eval(), torch.device("cpu"))
        tokens = torch.tensor([[3, 4, 5, 6], [7, 8, 29, 29]])
        together = step(tokens, torch.tensor([4, 2]))
        alone = step(torch.tensor([[7, 8]]), torch.tensor([2]))
    torch.testing.assert_close(together[1], alone[0], atol=1e-6, rtol=1e-5)
