"""Prompts in, answers out: greedy or sampled, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from mindspeed_ift.inference.sampling import Chooser, Sampling


class Reads(Protocol):
    """What `generate` needs of a model, as `decoder.Decoder` has it."""

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Tensor | None:
        """Read prompts; logits ``[B, vocabulary]`` of the token after each, where it is to be chosen."""

    def step(self, tokens: Sequence[int]) -> Tensor | None:
        """Read a token a row; logits as of `start`."""

    def agree(self, tokens: Sequence[int] | None) -> list[int]:
        """What was chosen where the logits are."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""


def generate(
    model: Reads,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    sampling: Sampling,
    tell: Callable[[int, list[int]], None] | None = None,
    ends: Callable[[Sequence[int]], bool] = lambda answer: False,
) -> list[list[int]]:
    """Continue every prompt until a stop token (not part of the answer) or ``max_new_tokens``.

    Args:
        model: reads and gives logits.
        prompts: token ids, none empty.
        stop_ids: tokens that end an answer.
        sampling: how tokens are chosen.
        tell: called with the number of a prompt and its answer so far, each time it has grown.
        ends: called with an answer so far each time it has grown: whether it ends there, all of it part of the answer.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    running = list(range(len(prompts)))
    chooser = Chooser(sampling, [list(prompt) for prompt in prompts])
    logits = model.start(prompts, sampling.max_new_tokens)
    for left in range(sampling.max_new_tokens - 1, -1, -1):
        chosen = model.agree(None if logits is None else chooser(logits))
        rows = []
        for row, token in enumerate(chosen):
            if token in stop_ids:
                continue
            answers[running[row]].append(token)
            if tell is not None:
                tell(running[row], answers[running[row]])
            if not ends(answers[running[row]]):
                rows.append(row)
        if not rows or not left:
            break
        if len(rows) < len(running):
            running = [running[row] for row in rows]
            model.keep(rows)
            chooser.keep(rows)
        logits = model.step([chosen[row] for row in rows])
    return answers
