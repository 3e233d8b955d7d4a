"""Preference pairs in, two samples each out: one prompt, the better and the worse answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindspeed_ift.data.conversation import DropRecord, LeaveOut, PreferencePair
from mindspeed_ift.data.cutting import SPLIT
from mindspeed_ift.data.encode import CUT_NOTE, Encoder, Written, refuse_overlong
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample

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

    @property
    def tokens(self) -> int:
        """Of both."""
        return len(self.chosen) + len(self.rejected)

    @property
    def learnt_tokens(self) -> int:
        """Of both."""
        return self.chosen.learnt_tokens + self.rejected.learnt_tokens

    def columns(self) -> dict[str, np.ndarray]:
        """By `PAIR_COLUMNS`, int32 ``[n]`` each."""
        found = (self.chosen.input_ids, self.chosen.labels, self.rejected.input_ids, self.rejected.labels)
        return dict(zip(PAIR_COLUMNS, found))


def encode_pairs(encoder: Encoder, pairs: Sequence[PreferencePair]) -> list[EncodedPair | DropRecord]:
    """One result a pair, in order: its samples, or why it has none.

    The prompt is written once, in front of the better answer, by the rules of LLaMA-Factory's pairwise processor.

    Args:
        encoder: With ``mask_history``; its ``cutoff`` or ``room`` cuts prompt and answers in proportion, its ``limit``
            drops.
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
    *before, (source, chosen) = better.turns
    prompt = [token for pair in before for part in pair for token in part] + source
    closing = [encoder.end_id] * template.efficient_eos
    answers = [chosen + closing, worse.turns[-1][1] + closing]
    lengths = (len(prompt), max(map(len, answers)))
    whole, length = 2 * len(prompt) + sum(map(len, answers)), sum(lengths)
    room = options.cutoff if options.room is None else options.room
    if options.room is not None and length > options.room and options.overlong != "truncate":
        refuse_overlong(options, length, whole)
    if room is not None and length > room:
        lengths = SPLIT[template.rules](*lengths, room)
    samples = [_sample(encoder, prompt[: lengths[0]], answer, lengths[1]) for answer in answers]
    if options.limit is not None and max(map(len, samples)) >= options.limit:
        raise LeaveOut(f"{options.limit} tokens or more (--seq-length)", whole)
    cut_tokens = whole - sum(map(len, samples))
    notes = (*((CUT_NOTE,) if cut_tokens else ()), *better.notes, *worse.notes)
    return EncodedPair(*samples, tuple(dict.fromkeys(notes)), cut_tokens)


def _sample(encoder: Encoder, prompt: list[int], answer: list[int], room: int) -> Sample:
    learnt = np.array(answer, np.int32)
    if encoder.options.mask_thoughts:
        learnt[encoder.learning.thoughts(answer)] = IGNORED_LABEL
    labels = np.concatenate([np.full(len(prompt), IGNORED_LABEL, np.int32), learnt[:room]])
    return Sample(np.array(prompt + answer[:room], np.int32), labels)
