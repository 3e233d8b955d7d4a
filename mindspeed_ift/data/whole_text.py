"""Templates that write a conversation as one text, of which the last answer alone is learnt.

Handlers of MindSpeed-LLM with a prompt of their own do so: the ids are those of the whole text, tokens may reach over
the borders of messages, and as many of them are prompt as the text up to the answer has by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mindspeed_ift.data.conversation import Conversation, DropRecord, Message, Role, check_turns
from mindspeed_ift.data.encode import Encoded, Encoder, StopRun, Written
from mindspeed_ift.data.templates import SLOT, FilledPiece, Template, Text, TokenId, Turn

STEPS = Template(
    name="mindspeed_alpaca",
    user=("### Instruction:\n{{content}}\n### Response:\n",),
    observation=("### Instruction:\n{{content}}\n### Response:\n",),
    assistant=("{{content}}\n",),
    function=("{{content}}\n",),
    system=("\n{{content}}\n",),
    default_system="Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request. "
    "Please note that you need to think through your response logically and step by step.",
    of_handler=True,
)
"""The prompt of MindSpeed-LLM's GeneralInstructionHandler and of those that are made of it."""

EACH_ANSWER = replace(STEPS, name="mindspeed_alpaca_each")
"""The same, each answer a sample of its own."""

MARKS = Template(
    name="mindspeed_moss",
    user=(TokenId(195), SLOT, TokenId(196)),
    observation=(TokenId(195), SLOT, TokenId(196)),
    assistant=(SLOT,),
    function=(SLOT,),
    efficient_eos=True,
    marks_first=True,
    of_handler=True,
)
"""Baichuan's marks of who speaks; every answer is learnt, message by message."""

LEFT_OUT_NOTE = "some of its answers were left out"


class WholeTextEncoder(Encoder):
    """Encodes a conversation as one text; see `Encoder`."""

    def write(self, conversations: Sequence[Conversation]) -> list[Written | DropRecord]:
        """See `Encoder.write`; one turn: all up to the last answer, and that."""
        return [
            turns if isinstance(turns, DropRecord) else self._whole(turns) for turns in self._rendered(conversations)
        ]

    def prompt_ids(self, messages: Sequence[Message], system: str = "", tools: str = "") -> list[int]:
        """See `Encoder.prompt_ids`."""
        turns = self._render(Conversation(check_turns([*messages, Message(Role.ASSISTANT, "")]), system, tools))
        return self._ids(_texts(turns)[0])

    def _whole(self, turns: list[Turn]) -> Written:
        prompt, answer = _texts(turns)
        ids, count = self._ids(prompt + answer), len(self._ids(prompt))
        return Written([(ids[:count], ids[count:])], self._special_note(self.pieces.holds_special_tokens(turns)))

    def _ids(self, text: str) -> list[int]:
        # The template has no special tokens of its own.
        if self.options.escape_special_tokens and self.pieces.special.stand_in(text):
            return self.tokenizer.encode_plain(text)
        return self.tokenizer.encode(text)


class EachAnswerEncoder(WholeTextEncoder):
    """Makes of each answer a sample of its own, with all that is before it as prompt."""

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded | DropRecord]:
        """See `Encoder.encode`; an answer whose sample is left out does not take the others with it."""
        return [self._samples(conversation) for conversation in conversations]

    def _samples(self, conversation: Conversation) -> Encoded | DropRecord:
        ends = range(2, len(conversation.messages) + 1, 2)
        found = super().encode([replace(conversation, messages=conversation.messages[:end]) for end in ends])
        dropped = [one for one in found if isinstance(one, DropRecord)]
        if len(dropped) == len(found) or any(isinstance(one, StopRun) for one in dropped):
            return next((one for one in dropped if isinstance(one, StopRun)), dropped[-1])
        joined = _joined([one for one in found if isinstance(one, Encoded)])
        if not dropped:
            return joined
        cut_tokens = joined.cut_tokens + sum(one.cut_tokens for one in dropped)
        return replace(joined, notes=(LEFT_OUT_NOTE, *joined.notes), cut_tokens=cut_tokens)


def _joined(found: Sequence[Encoded]) -> Encoded:
    first, *rest = (sample for one in found for sample in one.samples)
    notes = dict.fromkeys(note for one in found for note in one.notes)
    return Encoded(first, tuple(notes), sum(one.cut_tokens for one in found), tuple(rest))


def _texts(turns: Sequence[Turn]) -> tuple[str, str]:
    """Text up to the last answer, and that answer's."""
    *before, last = turns
    pieces = [piece for turn in before for side in (turn.source, turn.target) for piece in side]
    return _text([*pieces, *last.source]), _text(last.target)


def _text(pieces: Sequence[FilledPiece]) -> str:
    return "".join("".join(piece) for piece in pieces if isinstance(piece, str | Text))
