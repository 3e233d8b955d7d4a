"""Prompts in, greedy or drawn answers out, of all the ranks that share a model or the prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mindspeed_ift.inference.decoder import Decoder
from mindspeed_ift.inference.generate import generate
from mindspeed_ift.inference.load import Loaded
from mindspeed_ift.inference.sampling import Sampling


def answer(
    loaded: Loaded,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    sampling: Sampling,
    at_once: int,
    ends: Callable[[Sequence[int]], bool] = lambda answer: False,
) -> list[list[int]]:
    """Answer every prompt; those of like length share a batch, and data parallel ranks share the batches.

    Args:
        loaded: the model; all ranks of its layout make the same call.
        prompts: token ids, none empty.
        stop_ids: tokens that end an answer.
        sampling: how tokens are chosen.
        at_once: size of a batch.
        ends: as for `generate`.

    Returns:
        The ids of each, in the order of the prompts, on every rank.
    """
    loaded.require_ids(max(map(max, prompts), default=0))
    decoder, groups = Decoder(loaded.model, loaded.groups), loaded.groups
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    answers: dict[int, list[int]] = {}
    for start in range(groups.data_rank * at_once, len(order), groups.layout.data * at_once):
        batch = order[start : start + at_once]
        written = generate(decoder, [prompts[number] for number in batch], stop_ids, sampling, ends=ends)
        answers.update(zip(batch, written, strict=True))
    for of_rank in groups.gather(answers):
        answers |= of_rank
    return [answers[number] for number in range(len(prompts))]
