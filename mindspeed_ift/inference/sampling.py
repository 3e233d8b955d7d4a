"""Logits in, the next token out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, in the order of Hugging Face's ``generate``: penalty, temperature, top-k, top-p.

    Attributes:
        max_new_tokens: longest answer.
        temperature: 0 takes the likeliest token, else logits are divided by it.
        top_k: draw among this many likeliest tokens; 0 among all.
        top_p: draw among the fewest likeliest tokens that hold this share; 1 among all.
        repetition_penalty: of tokens that the prompt or the answer has: positive logits are divided by it, negative ones
            multiplied; 1 changes nothing (Keskar et al. 2019).
        seed: of the draws.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 1234


class Chooser:
    """Chooses the next tokens of some sequences; knows what they have said, for the penalty.

    Args:
        sampling: how.
        prompts: token ids of each sequence.
    """

    def __init__(self, sampling: Sampling, prompts: list[list[int]]) -> None:
        self.sampling = sampling
        self.generator = torch.Generator().manual_seed(sampling.seed)
        self._said: Tensor | None = None  # bool [B, vocabulary], made when the vocabulary is known
        self._prompts = prompts

    def __call__(self, logits: Tensor) -> list[int]:
        """The next token of every row, from logits ``[B, vocabulary]`` of any float dtype."""
        logits = logits.float().cpu()
        if self.sampling.repetition_penalty == 1:
            return choose(logits, self.sampling, self.generator).tolist()
        if self._said is None:
            self._said = torch.zeros(logits.shape, dtype=torch.bool)
            for row, prompt in zip(self._said, self._prompts, strict=True):
                row[prompt] = True
        chosen = choose(penalized(logits, self._said, self.sampling.repetition_penalty), self.sampling, self.generator)
        self._said[torch.arange(len(chosen)), chosen] = True
        return chosen.tolist()

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        if self._said is not None:
            self._said = self._said[rows]


def penalized(logits: Tensor, said: Tensor, penalty: float) -> Tensor:
    """fp32 ``[B, V]`` logits with those of ``said`` tokens (bool ``[B, V]``) made less likely."""
    return torch.where(said, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


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
