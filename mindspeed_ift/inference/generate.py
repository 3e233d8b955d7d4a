"""Prompts in, answers out: greedy or sampled, in batches, by recomputing the prefix (no key-value cache yet)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NextLogits = Callable[[Tensor, Tensor], Tensor]
"""(tokens int64 ``[B, S]`` right-padded, lengths int64 ``[B]``) -> logits of the next token ``[B, vocabulary]``."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: longest answer.
        temperature: 0 takes the likeliest token, else logits are divided by it.
        top_k: draw among this many likeliest tokens; 0 among all.
        top_p: draw among the fewest likeliest tokens that hold this share; 1 among all.
        seed: of the draws.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1234


def generate(
    next_logits: NextLogits, prompts: Sequence[Sequence[int]], stop_ids: Sequence[int], sampling: Sampling
) -> list[list[int]]:
    """Continue every prompt until a stop token (not part of the answer) or ``max_new_tokens``.

    Args:
        next_logits: the model.
        prompts: token ids, none empty.
        stop_ids: tokens that end an answer.
        sampling: how tokens are chosen.
    """
    generator = torch.Generator().manual_seed(sampling.seed)
    sequences = [list(prompt) for prompt in prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    running = list(range(len(prompts)))
    for _ in range(sampling.max_new_tokens):
        if not running:
            break
        lengths = torch.tensor([len(sequences[number]) for number in running])
        tokens = torch.zeros(len(running), int(lengths.max()), dtype=torch.int64)
        for row, number in enumerate(running):
            tokens[row, : lengths[row]] = torch.tensor(sequences[number])
        chosen = choose(next_logits(tokens, lengths).float().cpu(), sampling, generator)
        for number, token in zip(list(running), chosen.tolist(), strict=True):
            if token in stop_ids:
                running.remove(number)
            else:
                sequences[number].append(token)
                answers[number].append(token)
    return answers


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """The next token of every row, int64 ``[B]``, from fp32 logits ``[B, V]``."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        beyond = probabilities.cumsum(-1) - probabilities >= sampling.top_p  # the likeliest token always stays
        logits = logits.masked_fill(beyond.scatter(1, order, beyond), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def model_step(model: torch.nn.Module, device: torch.device) -> NextLogits:
    """A `NextLogits` of a whole model: right pads are behind every query that is read, so causality hides them."""

    @torch.no_grad()
    def step(tokens: Tensor, lengths: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
        logits = model(tokens.to(device), positions.to(device), None)
        return logits[torch.arange(len(lengths)), (lengths - 1).to(device)]

    return step
