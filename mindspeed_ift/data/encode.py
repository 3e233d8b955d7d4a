"""Conversations in, samples out: token ids, what of them is learnt, and what is cut or too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.conversation import Conversation, DropRecord, LeaveOut, Message, Role, check_turns
from mindspeed_ift.data.cutting import SPLIT, Pair, cut_turn, cut_turns, split_at_questions, split_balanced
from mindspeed_ift.data.learning import Learning, weighed
from mindspeed_ift.data.pieces import PieceEncoder
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample
from mindspeed_ift.data.template_fingerprint import fingerprint
from mindspeed_ift.data.templates import Rules, Template, Turn
from mindspeed_ift.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class EncodeOptions:
    """What of a conversation is learnt, and how long a sample may be.

    Attributes:
        enable_thinking: "true", "false" or "none".
        train_on_prompt: Learn the prompts too.
        mask_thoughts: Learn answers without their thoughts.
        mask_history: Learn the last answer only; turns are then cut from the first one on, and earlier thoughts
            removed.
        drop_thinking: Write the answers before the last question of the user without thoughts.
        escape_special_tokens: Special tokens within messages are plain text.
        append_eod: End with one more end-of-document token, learnt.
        cutoff: Cut a conversation to this many tokens, turn by turn.
        turn_limit: Cut each turn to this many tokens by itself (neat-pack), whatever the other turns take.
        limit: Samples of this many tokens or more are dropped ...
        cut_to_limit: ... or cut to one token less (neat-pack).
        overlong: What becomes of a conversation of more than ``room`` tokens: "truncate", "drop", "split", "error".
        room: Most tokens of a sample, if ``overlong`` is said; the other lengths are None then.
    """

    enable_thinking: str = "none"
    train_on_prompt: bool = False
    mask_thoughts: bool = False
    mask_history: bool = False
    drop_thinking: bool = False
    escape_special_tokens: bool = False
    append_eod: bool = False
    cutoff: int | None = None
    turn_limit: int | None = None
    limit: int | None = None
    cut_to_limit: bool = False
    overlong: str | None = None
    room: int | None = None


@dataclass(frozen=True)
class Encoded:
    """A sample, and why it is not all of its conversation.

    Attributes:
        sample: ``segments`` is None.
        notes: Rows of the ledger: what was cut or left out.
        cut_tokens: How many tokens were.
        rest: Further samples of a conversation that was split.
    """

    sample: Sample
    notes: tuple[str, ...] = ()
    cut_tokens: int = 0
    rest: tuple[Sample, ...] = ()

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All of the conversation, in order."""
        return self.sample, *self.rest

    @property
    def documents(self) -> int:
        """How many samples."""
        return 1 + len(self.rest)

    @property
    def columns(self) -> dict[str, list[np.ndarray]]:
        """`SAMPLE_COLUMNS` -> the documents of each, int32 ``[n]``."""
        return {"input_ids": [one.input_ids for one in self.samples], "labels": [one.labels for one in self.samples]}

    @property
    def tokens(self) -> int:
        """Of all samples."""
        return sum(map(len, self.samples))

    @property
    def learnt_tokens(self) -> int:
        """Of all samples."""
        return sum(sample.learnt_tokens for sample in self.samples)


@dataclass(frozen=True)
class Written:
    """A conversation as ids, nothing cut.

    Attributes:
        turns: Prompt and answer of each turn.
        notes: Rows of the ledger.
    """

    turns: list[Pair]
    notes: tuple[str, ...] = ()


class StopRun(DropRecord):
    """The run should stop at this record; the argument tells the user why."""


class TemplateMismatch(StopRun):
    """The template cannot do what the options ask: not a matter of this record."""


_AT_ONCE = 100

SAMPLE_COLUMNS = ("input_ids", "labels")

CUT_NOTE = "longer than the length asked for"
SPLIT_NOTE = "longer than the length asked for, split into several samples"
NOTHING_LEARNT_NOTE = "no token is learnt"
SPECIAL_NOTE = "special tokens in its text, read as such (see --escape-special-tokens)"
ESCAPED_NOTE = "special tokens in its text, read as plain text"


def check_room(options: EncodeOptions, length: int, whole: int) -> None:
    """Do nothing if what has to fit into ``room`` does, or may be cut or split.

    Args:
        options: Say what becomes of it.
        length: Tokens of what has to fit.
        whole: Tokens of all of the record.

    Raises:
        DropRecord: It is left out, or stops the run.
    """
    if options.room is None or length <= options.room:
        return
    if options.overlong == "drop":
        raise LeaveOut(f"more than {options.room} tokens (--overlong drop)", whole)
    if options.overlong == "error":
        raise StopRun(
            f"{length} tokens, more than the {options.room} that fit; give a larger --seq-length (or --cutoff-len), or"
            " --overlong truncate, drop or split"
        )


def check_limit(options: EncodeOptions, length: int, whole: int) -> None:
    """Do nothing if a sample is shorter than ``limit``; arguments as of `check_room`.

    Raises:
        LeaveOut: It is not.
    """
    if options.limit is not None and length >= options.limit:
        raise LeaveOut(f"{options.limit} tokens or more (--seq-length)", whole)


class Encoder:
    """Encodes conversations with one template and tokenizer.

    Args:
        template: How conversations are written.
        tokenizer: Text -> ids.
        options: What is learnt, how long samples may be.

    Raises:
        UserError: The tokenizer lacks a token that the template needs, or the template cannot do what is asked.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer, options: EncodeOptions) -> None:
        self.template = template
        self.options = options
        self.pieces = PieceEncoder(template, tokenizer, options.escape_special_tokens)
        self.tokenizer = self.pieces.tokenizer
        """The one given, with the template's stop words."""
        self.end_id = self.pieces.end_id
        """Closes a turn, and a document with ``append_eod``."""
        self.stop_ids = self.pieces.stop_ids
        """At which generation stops."""
        self.learning = Learning(
            self.tokenizer,
            template.thought,
            mask_thoughts=options.mask_thoughts,
            mask_history=options.mask_history,
            train_on_prompt=options.train_on_prompt,
        )
        """What the messages themselves say of the loss."""
        self._closing = [self.end_id] * (template.efficient_eos + options.append_eod)
        if options.train_on_prompt and template.efficient_eos and template.rules is Rules.LLAMA_FACTORY_0_9:
            raise UserError(
                f"--train-on-prompt does not go with --prompt-type {template.name}: the first position of a prompt"
                " learns the end of the answer before it; leave the flag out or choose another template"
            )

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded | DropRecord]:
        """One result a conversation, in order: its sample, or why it has none."""
        results: list[Encoded | DropRecord] = []
        # Ids in lists take ten times the memory of those in arrays, so few of them wait.
        for start in range(0, len(conversations), _AT_ONCE):
            some = conversations[start : start + _AT_ONCE]
            results += map(self._fitted, some, self.write(some))
        return results

    def turn_ids(self, conversation: Conversation) -> list[Pair]:
        """Ids of the prompt and the answer of each turn, nothing cut.

        Raises:
            DropRecord: A call or a tool cannot be written.
        """
        return self._written_whole(conversation).turns

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
        *before, last = self.turn_ids(Conversation(turns, system, tools))
        return [*(token for source, target in before for token in source + target), *last[0]]

    def turn_end_ids(self) -> list[int]:
        """Token ids that close an answer."""
        return self.pieces.encode(self.template.closing_pieces())

    @property
    def fingerprint(self) -> str:
        """sha256 that differs where another template would be written."""
        return fingerprint(self.template)

    def _rendered(self, conversations: Sequence[Conversation]) -> list[list[Turn] | DropRecord]:
        """Of each conversation its turns, or why it has none."""
        rendered: list[list[Turn] | DropRecord] = []
        for conversation in conversations:
            try:
                rendered.append(self._render(conversation))
            except DropRecord as reason:
                rendered.append(reason)
        return rendered

    def write(self, conversations: Sequence[Conversation]) -> list[Written | DropRecord]:
        """Each conversation as ids, nothing cut, or why it has none; encoded together, which is faster."""
        rendered = self._rendered(conversations)
        ids = self.pieces.encode_all(turn for turns in rendered if isinstance(turns, list) for turn in turns)
        return [
            turns
            if isinstance(turns, DropRecord)
            else Written(
                [(self.pieces.joined(turn.source, ids), self.pieces.joined(turn.target, ids)) for turn in turns],
                self.template.notes(conversation) + self._special_note(self.pieces.holds_special_tokens(turns)),
            )
            for conversation, turns in zip(conversations, rendered)
        ]

    def _render(self, conversation: Conversation) -> list[Turn]:
        options = self.options
        return self.template.render(conversation, options.enable_thinking, options.mask_history, options.drop_thinking)

    def _special_note(self, seen: bool) -> tuple[str, ...]:
        return (ESCAPED_NOTE if self.options.escape_special_tokens else SPECIAL_NOTE,) if seen else ()

    def _fitted(self, conversation: Conversation, written: Written | DropRecord) -> Encoded | DropRecord:
        """The samples of a conversation, whatever its length."""
        try:
            if isinstance(written, DropRecord):
                raise written
            room, length = self.options.room, self._length(written)
            check_room(self.options, length, length)
            if room is None or length <= room or self.options.overlong == "truncate":
                return self._assemble(written, conversation)
            return self._split(conversation, written, room)
        except DropRecord as reason:
            return reason

    def _length(self, written: Written) -> int:
        return sum(len(source) + len(target) for source, target in written.turns) + len(self._closing)

    def _split(self, conversation: Conversation, whole: Written, room: int) -> Encoded:
        """Samples that fit, each with the system prompt; a question whose answer does not fit is cut."""

        def fits(part: Conversation) -> bool:
            return self._length(self._written_whole(part)) <= room

        lengths = [len(source) + len(target) for source, target in whole.turns]
        parts = split_at_questions(conversation, lengths, room, fits)
        encoded = [self._assemble(self._written_whole(part), part) for part in parts]
        if len(encoded) == 1:
            return encoded[0]
        notes = dict.fromkeys((*(note for one in encoded for note in one.notes), SPLIT_NOTE))
        return Encoded(
            encoded[0].sample,
            # The reason of a loss comes first.
            tuple(sorted(notes, key=CUT_NOTE.__ne__)),
            sum(one.cut_tokens for one in encoded),
            tuple(one.sample for one in encoded[1:]),
        )

    def _written_whole(self, conversation: Conversation) -> Written:
        (written,) = self.write([conversation])
        if isinstance(written, DropRecord):
            raise written
        return written

    def _assemble(self, written: Written, conversation: Conversation) -> Encoded:
        options, pairs = self.options, written.turns
        efficient = self.template.efficient_eos
        whole = self._length(written)
        pairs = self.cut(pairs)
        last = len(pairs) - 1
        # LLaMA-Factory counts turns from the one that takes its room first: with only the last answer learnt, its
        # prompt is the one whose first position does not learn the end of the answer before.
        unmarked = -1 if self.template.marks_first else last if options.mask_history else 0
        ids: list[int] = []
        labels: list[int] = []
        for number, (source, target) in enumerate(pairs):
            ids += source + target
            labels += self._prompt_labels(source, ends_answer=efficient and number != unmarked)
            labels += target if number == last or not options.mask_history else [IGNORED_LABEL] * len(target)
        ids += self._closing
        labels += self._closing
        if options.limit is not None and options.cut_to_limit:
            ids, labels = ids[: options.limit - 1], labels[: options.limit - 1]
        check_limit(options, len(ids), whole)
        cut_tokens = whole - len(ids)
        sample = Sample(np.array(ids, np.int32), np.array(labels, np.int32))
        if self.learning.asks(conversation):
            sample = weighed(sample, self.learning.weights(written.turns, pairs, conversation, efficient))
        learns = (sample.labels != IGNORED_LABEL).any()
        notes = (
            *((CUT_NOTE,) if cut_tokens else ()),
            *written.notes,
            *self.learning.notes(conversation),
            *(() if learns else (NOTHING_LEARNT_NOTE,)),
        )
        return Encoded(sample, notes, cut_tokens)

    def _prompt_labels(self, source: list[int], ends_answer: bool) -> list[int]:
        if self.options.train_on_prompt:
            return source
        labels = [IGNORED_LABEL] * len(source)
        if source and ends_answer:
            labels[0] = self.end_id
        return labels

    def cut(self, pairs: list[Pair]) -> list[Pair]:
        """Turns cut to the lengths asked for, all of them together and each by itself."""
        options, rules = self.options, self.template.rules
        # With only the last answer learnt, the last turn takes its room first.
        direction = -1 if options.mask_history else 1
        pairs = pairs[::direction]
        if options.cutoff is not None:
            keeps_room = self.template.efficient_eos and rules is Rules.LLAMA_FACTORY_0_9
            pairs = cut_turns(pairs, options.cutoff - keeps_room, SPLIT[rules])
        if options.room is not None:
            pairs = cut_turns(pairs, options.room - len(self._closing), SPLIT[rules])
        if options.turn_limit is not None:
            pairs = [cut_turn(pair, split_balanced(len(pair[0]), len(pair[1]), options.turn_limit)) for pair in pairs]
        return pairs[::direction]
