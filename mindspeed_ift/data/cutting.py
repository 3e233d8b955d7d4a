"""Over-long samples at training time: cut in proportion per turn, at the end, or refused."""

from __future__ import annotations

import numpy as np

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample


def cut(sample: Sample, length: int, *, proportional: bool) -> Sample:
    """Shorten ``sample`` to at most ``length`` tokens.

    Args:
        sample: not packed.
        length: tokens to keep.
        proportional: cut the prompt and the answer of each turn as LLaMA-Factory's ``infer_seqlen`` does, turn after turn
            until the budget is used (MindSpeed-LLM's default); else keep the first ``length`` tokens
            (``--cut-max-seqlen``).
    """
    if len(sample) <= length:
        return sample
    if not proportional:
        return Sample(sample.input_ids[:length], sample.labels[:length])
    kept: list[np.ndarray] = []
    budget = length
    for start, middle, stop in _turns(sample.labels):
        if budget <= 0:
            break
        prompt, answer = _shares(middle - start, stop - middle, budget)
        kept += [np.arange(start, start + prompt), np.arange(middle, middle + answer)]
        budget -= prompt + answer
    order = np.concatenate(kept)
    return Sample(sample.input_ids[order], sample.labels[order])


def refuse_overlong(lengths: np.ndarray, samples: range, seq_length: int) -> None:
    """Raise for the first sample over ``seq_length`` (``--no-cut-token``).

    Raises:
        UserError: naming it.
    """
    over = np.flatnonzero(lengths[samples.start : samples.stop] > seq_length)
    if len(over):
        sample = samples.start + int(over[0])
        raise UserError(
            f"sample {sample} has {int(lengths[sample])} tokens, over --seq-length {seq_length} ({len(over)} such samples); "
            "raise --seq-length or leave out --no-cut-token"
        )


def _turns(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """(start, first learnt, stop) of each prompt-answer pair, from the runs of ignored labels."""
    learnt = labels != IGNORED_LABEL
    edges = np.flatnonzero(np.diff(learnt.astype(np.int8))) + 1
    stops = [int(edge) for edge in edges if learnt[edge - 1]] + [len(labels)]
    turns, start = [], 0
    for stop in stops:
        if stop > start:
            inside = np.flatnonzero(learnt[start:stop])
            turns.append((start, start + int(inside[0]) if len(inside) else stop, stop))
            start = stop
    return turns


def _shares(prompt: int, answer: int, budget: int) -> tuple[int, int]:
    """Tokens of prompt and answer to keep. Source: LLaMA-Factory 0.9.5, ``infer_seqlen``."""
    if answer * 2 < budget:
        most = budget
    elif prompt * 2 < budget:
        most = budget - prompt
    else:
        most = int(budget * (answer / (prompt + answer)))
    kept_answer = min(most, answer)
    return min(max(budget - kept_answer, 0), prompt), kept_answer
