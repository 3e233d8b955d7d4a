"""Conversations in, samples out: token ids, what of them is learnt, and what is cut or too long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.conversation import Conversation, DropRecord, Message, Role, check_turns
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample
from mindspeed_ift.data.templates import Cut, Piece, Template, Token, Turn
from mindspeed_ift.data.tokenizer import Tokenizer

_CACHED_LENGTH = 2048
_CACHED_PIECES = 4096


@dataclass(frozen=True)
class EncodeOptions:
    """What of a conversation is learnt, and how long a sample may be.

    Attributes:
        enable_thinking: "true", "false" or "none".
        train_on_prompt: Learn the prompts too.
        mask_history: Learn the last answer only; turns are then cut from the first one on, and earlier thoughts
            removed.
        append_eod: End with one more end-of-document token, learnt.
        cutoff: Cut a conversation to this many tokens, turn by turn.
        turn_limit: Cut each turn to this many tokens by itself (neat-pack), whatever the other turns take.
        limit: Samples of this many tokens or more are dropped ...
        cut_to_limit: ... or cut to one token less (neat-pack).
    """

    enable_thinking: str = "none"
    train_on_prompt: bool = False
    mask_history: bool = False
    append_eod: bool = False
    cutoff: int | None = None
    turn_limit: int | None = None
    limit: int | None = None
    cut_to_limit: bool = False


@dataclass(frozen=True)
class Encoded:
    """A sample, and why it is not all of its conversation.

    Attributes:
        sample: ``segments`` is None.
        notes: Rows of the ledger: what was cut or left out.
    """

    sample: Sample
    notes: tuple[str, ...] = ()


CUT_NOTE = "longer than the length asked for"
CALL_NOTE = "a function call that is not JSON was left out"
NOTHING_LEARNT_NOTE = "no token is learnt"


def split_proportional(source: int, target: int, room: int) -> tuple[int, int]:
    """Lengths of prompt and answer that fit ``room`` tokens: the answer its share, at least one (LLaMA-Factory
    0.8.2)."""
    most_target = max(int(room * (target / (source + target))), 1)
    target = min(target, most_target)
    return min(source, room - target), target


def split_balanced(source: int, target: int, room: int) -> tuple[int, int]:
    """Lengths that fit ``room``: a side shorter than half of it is kept whole (later LLaMA-Factory's infer_seqlen)."""
    if target * 2 < room:
        most_target = room
    elif source * 2 < room:
        most_target = room - source
    else:
        most_target = int(room * (target / (source + target)))
    target = min(target, most_target)
    return min(source, max(room - target, 0)), target


_SPLIT: dict[Cut, Callable[[int, int, int], tuple[int, int]]] = {
    Cut.PROPORTIONAL: split_proportional,
    Cut.BALANCED: split_balanced,
}

Pair = tuple[list[int], list[int]]


class Encoder:
    """Encodes conversations with one template and tokenizer.

    Args:
        template: How conversations are written.
        tokenizer: Text -> ids.
        options: What is learnt, how long samples may be.

    Raises:
        UserError: The tokenizer lacks the token that closes the template's turns.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer, options: EncodeOptions) -> None:
        self.template = template
        self.tokenizer = tokenizer
        self.options = options
        self._known: dict[str, list[int]] = {}
        self.end_id = end_token_id(template, tokenizer)
        """Closes a turn, and a document with ``append_eod``."""

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded | DropRecord]:
        """One result a conversation, in order: its sample, or why it has none."""
        rendered: list[list[Turn] | DropRecord] = []
        for conversation in conversations:
            try:
                rendered.append(
                    self.template.render(
                        conversation, self.options.enable_thinking, forget_thoughts=self.options.mask_history
                    )
                )
            except DropRecord as reason:
                rendered.append(reason)
        ids = self._encode_pieces([turn for turns in rendered if not isinstance(turns, DropRecord) for turn in turns])
        results: list[Encoded | DropRecord] = []
        for conversation, turns in zip(conversations, rendered):
            if isinstance(turns, DropRecord):
                results.append(turns)
                continue
            pairs = [(self._ids(turn.source, ids), self._ids(turn.target, ids)) for turn in turns]
            try:
                results.append(self._assemble(conversation, pairs))
            except DropRecord as reason:
                results.append(reason)
        return results

    def prompt_ids(self, messages: Sequence[Message], system: str = "", tools: str = "") -> list[int]:
        """Ids of a conversation up to where the model answers: what training showed it before such an answer.

        Args:
            messages: Prompt and answer in turn, the last one a prompt.
            system: "" takes the template's default.
            tools: Descriptions of the tools as JSON; "" for none.

        Raises:
            DropRecord: The turns do not alternate, or a call cannot be written.
        """
        turns = check_turns([*messages, Message(Role.ASSISTANT, "")])
        rendered = self.template.render(Conversation(turns, system, tools), self.options.enable_thinking)
        ids = self._encode_pieces(rendered)
        prompt = [self._ids(turn.source, ids) + self._ids(turn.target, ids) for turn in rendered[:-1]]
        return [*(token for turn in prompt for token in turn), *self._ids(rendered[-1].source, ids)]

    def turn_end_ids(self) -> list[int]:
        """Token ids that close an answer."""
        pieces = self.template.closing_pieces()
        return self._ids(pieces, {piece: self.tokenizer.encode(piece) for piece in pieces if isinstance(piece, str)})

    def _encode_pieces(self, turns: Sequence[Turn]) -> dict[str, list[int]]:
        """Ids of every distinct text; short ones are remembered, since system prompts and separators come again."""
        texts = {
            piece for turn in turns for side in (turn.source, turn.target) for piece in side if isinstance(piece, str)
        }
        if len(self._known) > _CACHED_PIECES:
            self._known.clear()
        found = {text: self._known[text] for text in texts if text in self._known}
        missing = sorted(texts - found.keys())
        for text, ids in zip(missing, self.tokenizer.encode_batch(missing)):
            found[text] = ids
            if len(text) <= _CACHED_LENGTH:
                self._known[text] = ids
        return found

    def _ids(self, pieces: Sequence[Piece], ids: dict[str, list[int]]) -> list[int]:
        joined: list[int] = []
        for piece in pieces:
            if isinstance(piece, str):
                joined += ids[piece]
            elif piece is Token.END:
                joined.append(self.end_id)
            elif self.tokenizer.bos_id is not None:
                joined.append(self.tokenizer.bos_id)
        return joined

    def _assemble(self, conversation: Conversation, pairs: list[Pair]) -> Encoded:
        options = self.options
        whole = sum(len(source) + len(target) for source, target in pairs)
        pairs = self._cut(pairs)
        ids: list[int] = []
        labels: list[int] = []
        for number, (source, target) in enumerate(pairs, 1):
            is_learnt = number == len(pairs) or not options.mask_history
            ids += source + target
            labels += source if options.train_on_prompt else [IGNORED_LABEL] * len(source)
            labels += target if is_learnt else [IGNORED_LABEL] * len(target)
        cut = len(ids) < whole
        if options.append_eod:
            ids.append(self.end_id)
            labels.append(self.end_id)
        if options.limit is not None and len(ids) >= options.limit:
            if not options.cut_to_limit:
                raise DropRecord(f"{options.limit} tokens or more (--seq-length)")
            ids, labels, cut = ids[: options.limit - 1], labels[: options.limit - 1], True
        sample = Sample(np.array(ids, np.int32), np.array(labels, np.int32))
        return Encoded(sample, self._notes(conversation, sample, cut))

    def _cut(self, pairs: list[Pair]) -> list[Pair]:
        """Turns cut to the lengths asked for, all of them together and each by itself."""
        options = self.options
        # With only the last answer learnt, the last turn takes its room first.
        direction = -1 if options.mask_history else 1
        pairs = pairs[::direction]
        if options.cutoff is not None:
            pairs = cut_turns(pairs, options.cutoff, _SPLIT[self.template.cut])
        if options.turn_limit is not None:
            pairs = [cut_turn(pair, split_balanced(len(pair[0]), len(pair[1]), options.turn_limit)) for pair in pairs]
        return pairs[::direction]

    def _notes(self, conversation: Conversation, sample: Sample, cut: bool) -> tuple[str, ...]:
        notes = (CUT_NOTE,) if cut else ()
        if any(self.template.skips_call(message) for message in conversation.messages):
            notes += (CALL_NOTE,)
        if not (sample.labels != IGNORED_LABEL).any():
            notes += (NOTHING_LEARNT_NOTE,)
        return notes


def cut_turns(pairs: list[Pair], cutoff: int, split: Callable[[int, int, int], tuple[int, int]]) -> list[Pair]:
    """Cut turns to ``cutoff`` tokens together: each takes from what is left, and those after it vanish."""
    kept: list[Pair] = []
    total = 0
    for pair in pairs:
        if total >= cutoff:
            break
        pair = cut_turn(pair, split(len(pair[0]), len(pair[1]), cutoff - total))
        total += len(pair[0]) + len(pair[1])
        kept.append(pair)
    return kept


def cut_turn(pair: Pair, lengths: tuple[int, int]) -> Pair:
    """The first tokens of prompt and answer."""
    return pair[0][: lengths[0]], pair[1][: lengths[1]]


def end_token_id(template: Template, tokenizer: Tokenizer) -> int:
    """Id of the token that closes a turn: the template's own, else the tokenizer's end of sequence.

    Raises:
        UserError: The tokenizer has no such token.
    """
    if template.end_token is None:
        return tokenizer.eod_id
    found = tokenizer.token_id(template.end_token)
    if found is None:
        raise UserError(
            f"tokenizer {tokenizer.path} has no token {template.end_token}, which closes the turns of --prompt-type"
            f" {template.name}; choose another template or the model's own tokenizer"
        )
    return found
