"""Preference pairs in, two samples each out: one prompt, the better and the worse answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mindspeed_ift.data.conversation import DropRecord, LeaveOut, PreferencePair
from mindspeed_ift.data.cutting import SPLIT, Pair, cut_turns
from mindspeed_ift.data.encode import CUT_NOTE, Encoder, Written, check_limit, check_room
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample
from mindspeed_ift.data.templates import Rules

PAIR_COLUMNS = ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")


@dataclass(frozen=True)
class EncodedPair:
    """Two samples that begin with the same prompt, of which only the last answers are learnt.

    Attributes:
        chosen: The prompt and the better answer.
        rejected: The prompt and the worse one.
        notes: Rows of the ledger: what was cut or left out.
        cut_tokens: How many tokens were cut, of both.
    """

    chosen: Sample
    rejected: Sample
    notes: tuple[str, ...] = ()
    cut_tokens: int = 0
    documents: ClassVar[int] = 1

    @property
    def tokens(self) -> int:
        """Of both."""
        return len(self.chosen) + len(self.rejected)

    @property
    def learnt_tokens(self) -> int:
        """Of both."""
        return self.chosen.learnt_tokens + self.rejected.learnt_tokens

    @property
    def columns(self) -> dict[str, list[np.ndarray]]:
        """`PAIR_COLUMNS` -> the one document of each, int32 ``[n]``."""
        found = (self.chosen.input_ids, self.chosen.labels, self.rejected.input_ids, self.rejected.labels)
        return {name: [values] for name, values in zip(PAIR_COLUMNS, found)}


def encode_pairs(encoder: Encoder, pairs: Sequence[PreferencePair]) -> list[EncodedPair | DropRecord]:
    """One result a pair, in order: its samples, or why it has none.

    The prompt is written once, in front of the better answer, by the rules of LLaMA-Factory's pairwise processor.

    Args:
        encoder: With ``mask_history``; its ``room`` cuts prompt and answers in proportion, its ``cutoff`` by the rules
            of the template (each conversation turn by turn, or as ``room`` does), its ``limit`` drops.
        pairs: What to encode.
    """
    chosen = encoder.write([pair.chosen for pair in pairs])
    rejected = encoder.write([pair.rejected for pair in pairs])
    results: list[EncodedPair | DropRecord] = []
    for better, worse in zip(chosen, rejected):
        failed = next((one for one in (better, worse) if isinstance(one, DropRecord)), None)
        try:
            results.append(failed or _assemble(encoder, better, worse))
        except DropRecord as reason:
            results.append(reason)
    return results


def _assemble(encoder: Encoder, better: Written, worse: Written) -> EncodedPair:
    options, template = encoder.options, encoder.template
    closing = [encoder.end_id] * template.efficient_eos
    prompt = _prompt(better.turns)
    whole = 2 * len(prompt) + sum(len(one.turns[-1][1]) + len(closing) for one in (better, worse))
    if options.cutoff is not None and options.room is None and template.rules is Rules.LLAMA_FACTORY_0_8:
        kept = [cut_turns(one.turns, options.cutoff, SPLIT[template.rules]) for one in (better, worse)]
        if any(len(turns) < len(one.turns) for turns, one in zip(kept, (better, worse))):
            raise LeaveOut(f"its last turn begins after {options.cutoff} tokens (--cutoff-len)", whole)
        prompt, answers = _prompt(kept[0]), [turns[-1][1] + closing for turns in kept]
    else:
        prompt, answers = _cut_together(encoder, prompt, [one.turns[-1][1] + closing for one in (better, worse)], whole)
    samples = [_sample(encoder, prompt, answer) for answer in answers]
    check_limit(options, max(map(len, samples)), whole)
    cut_tokens = whole - sum(map(len, samples))
    notes = (*((CUT_NOTE,) if cut_tokens else ()), *better.notes, *worse.notes)
    return EncodedPair(*samples, tuple(dict.fromkeys(notes)), cut_tokens)


def _prompt(turns: Sequence[Pair]) -> list[int]:
    *before, (source, _) = turns
    return [token for pair in before for part in pair for token in part] + source


def _cut_together(
    encoder: Encoder, prompt: list[int], answers: list[list[int]], whole: int
) -> tuple[list[int], list[list[int]]]:
    """Prompt and answers that fit, the same room for both answers: LLaMA-Factory's rule since 0.9."""
    options = encoder.options
    lengths = (len(prompt), max(map(len, answers)))
    room, length = options.cutoff if options.room is None else options.room, sum(lengths)
    check_room(options, length, whole)
    if room is not None and length > room:
        lengths = SPLIT[encoder.template.rules](*lengths, room)
    return prompt[: lengths[0]], [answer[: lengths[1]] for answer in answers]


def _sample(encoder: Encoder, prompt: list[int], answer: list[int]) -> Sample:
    learnt = np.array(answer, np.int32)
    if encoder.options.mask_thoughts:
        learnt[encoder.learning.thoughts(answer)] = IGNORED_LABEL
    labels = np.concatenate([np.full(len(prompt), IGNORED_LABEL, np.int32), learnt])
    return Sample(np.array(prompt + answer, np.int32), labels)
