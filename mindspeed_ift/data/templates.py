"""Conversation in, pieces of text out: what stands around each message.

A piece is encoded by itself (no token reaches from one into the next), as LLaMA-Factory does; which pieces a turn is
cut into is therefore part of a template. The templates themselves are rows of template_table.py.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from mindspeed_ift.data import tool_formats
from mindspeed_ift.data.conversation import Conversation, Message, Role, ToolCall, parse_tool_calls, parse_tools
from mindspeed_ift.data.tool_formats import ToolFormat

SLOT = "{{content}}"
"""Where a piece of a template takes the message."""
ROUND = "{{idx}}"
"""Where a piece around a prompt takes the number of the turn, from 0."""
CALL_SLOT = re.compile(r"\{\{(name|arguments)\}\}")
"""Where a piece around a call takes its parts; such pieces are written once a call."""

CALL_NOTE = "a function call that is not JSON was left out"
TOOLS_NOTE = "a description of tools that is not JSON was left out"


class Token(Enum):
    """A piece that is one token of the tokenizer, not text."""

    END = "eos_token"
    """The token that closes a turn: the template's first stop word where it replaces the tokenizer's end of sequence,
    else that."""
    BEGIN = "bos_token"
    """The tokenizer's beginning of sequence; nothing where it has none."""


@dataclass(frozen=True)
class NamedToken:
    """A piece that is the one token of this text."""

    text: str


@dataclass(frozen=True)
class TokenId:
    """A piece that is the token of this id, whatever text the tokenizer has for it."""

    number: int


class Text(NamedTuple):
    """A piece with a message in it, which may hold anything."""

    before: str
    content: str
    after: str


Piece = str | Token | NamedToken | TokenId
"""What a template is made of."""
FilledPiece = Piece | Text


class Rules(Enum):
    """Whose rules hold for what a template leaves open: cutting, calls that cannot be read."""

    LLAMA_FACTORY_0_8 = "LLaMA-Factory 0.8.2"
    """The answer gets its share of the room; a call or description of tools that is not JSON is left out."""
    LLAMA_FACTORY_0_9 = "LLaMA-Factory 0.9.5"
    """Of a short side nothing is cut; a record with such a call or description is dropped."""


@dataclass(frozen=True)
class Turn:
    """A prompt and its answer, as pieces; only the answer is learnt."""

    source: list[FilledPiece]
    target: list[FilledPiece]


@dataclass(frozen=True)
class Template:
    """One chat template. Field by field LLaMA-Factory's, from which the names come.

    Attributes:
        name: Its name for ``--prompt-type``.
        user, observation, assistant, function, system: Pieces around a message of that kind, `SLOT` within.
        observation_join: Between the results of parallel calls.
        separator: In front of every turn but the first.
        prefix: In front of everything.
        default_system: System prompt of conversations without one; "" for none.
        stop_words: Tokens at which generation stops; added to a tokenizer that lacks them.
        replace_eos: The first stop word takes the place of the tokenizer's end of sequence.
        efficient_eos: Answers are not closed by a token: the end of sequence stands once, at the end of all, and
            where a prompt follows an answer its first position learns it.
        tools: How tools and calls are written.
        rules: See `Rules`.
        thought: Opening and closing of a thought.
        thinking: The template puts an empty thought where an answer has none.
        system_in_user: The system prompt stands within the first prompt, in front of its text.
        marks_first: With ``efficient_eos`` the very first position learns the end of sequence too.
        of_handler: Written by handlers of MindSpeed-LLM with a prompt of their own, which cut nothing to --seq-length.
    """

    name: str
    user: tuple[Piece, ...]
    observation: tuple[Piece, ...]
    assistant: tuple[Piece, ...] = (SLOT, Token.END)
    function: tuple[Piece, ...] = ("Action: {{name}}\nAction Input: {{arguments}}\n", Token.END)
    system: tuple[Piece, ...] = (SLOT,)
    observation_join: str = "\n"
    separator: tuple[Piece, ...] = ()
    prefix: tuple[Piece, ...] = ()
    default_system: str = ""
    stop_words: tuple[str, ...] = ()
    replace_eos: bool = False
    efficient_eos: bool = False
    tools: ToolFormat = field(default=tool_formats.ACTION)
    rules: Rules = Rules.LLAMA_FACTORY_0_8
    thought: tuple[str, str] = ("<think>\n", "\n</think>\n\n")
    thinking: bool = False
    system_in_user: bool = False
    marks_first: bool = False
    of_handler: bool = False

    @property
    def keeps_room_for_eod(self) -> bool:
        """MindSpeed-LLM cuts to --seq-length with the older rules and to one less with the later."""
        return self.rules is Rules.LLAMA_FACTORY_0_9

    def render(
        self,
        conversation: Conversation,
        enable_thinking: str = "none",
        forget_thoughts: bool = False,
        drop_thinking: bool = False,
    ) -> list[Turn]:
        """Write a conversation.

        Args:
            conversation: What to write.
            enable_thinking: "true", "false" or "none"; only a thinking template looks at it.
            forget_thoughts: A thinking template writes all answers but the last without thoughts, empty ones too.
            drop_thinking: Any template writes the answers before the last question of the user so, as most models
                see their history.

        Raises:
            DropRecord: A call or a tool cannot be written.
        """
        messages = conversation.messages
        past = len(messages) - 2 if forget_thoughts and self.thinking else 0
        if drop_thinking:
            past = max([past, *(place for place, message in enumerate(messages) if message.role is Role.USER)])
        turns = []
        for start in range(0, len(messages), 2):
            answer = messages[start + 1]
            if start < past or (self.thinking and enable_thinking == "false"):
                answer = replace(answer, content=self.without_thought(answer.content))
            turn = Turn(self._prompt(conversation, start), self._answer(answer))
            if self.thinking and start >= past and not any(word.strip() in answer.content for word in self.thought):
                empty = "".join(self.thought)
                turn = (
                    replace(turn, target=[empty, *turn.target])
                    if enable_thinking == "true"
                    else replace(turn, source=[*turn.source, empty])
                )
            turns.append(turn)
        return turns

    def notes(self, conversation: Conversation) -> tuple[str, ...]:
        """What `render` leaves out of this conversation: rows of the ledger."""
        tools = [conversation.tools] if conversation.tools.strip() else []
        calls = [message.content for message in conversation.messages if message.role is Role.FUNCTION]
        left_out = ((TOOLS_NOTE, tools), (CALL_NOTE, calls))
        return tuple(note for note, texts in left_out if not all(map(self._reads, texts)))

    def closing_pieces(self) -> list[Piece]:
        """The pieces that close an answer: what follows the text in ``assistant``."""
        pieces: list[Piece] = list(self.assistant)
        while pieces:
            piece = pieces.pop(0)
            if isinstance(piece, str) and SLOT in piece:
                after = piece.split(SLOT, 1)[1]
                return ([after] if after else []) + pieces
        return []

    def _system(self, conversation: Conversation) -> list[FilledPiece]:
        described = ""
        if conversation.tools.strip() and self._reads(conversation.tools):
            tools = parse_tools(conversation.tools)
            described = self.tools.describe(tools) if tools else ""
        system = conversation.system or self.default_system
        return _fill(self.system, system + described) if system or conversation.tools.strip() else []

    def _prompt(self, conversation: Conversation, start: int) -> list[FilledPiece]:
        message = conversation.messages[start]
        content = self.observation_join.join(message.results) if message.results else message.content
        opening: list[FilledPiece] = list(self.separator)
        if start == 0:
            system = self._system(conversation)
            opening = [*self.prefix, *([] if self.system_in_user else system)]
            if self.system_in_user:
                content = "".join("".join(piece) for piece in system if isinstance(piece, str | Text)) + content
        pieces = self.observation if message.role is Role.OBSERVATION else self.user
        return opening + _fill(pieces, content, turn=start // 2)

    def _answer(self, message: Message) -> list[FilledPiece]:
        if message.role is not Role.FUNCTION:
            return _fill(self.assistant, message.content)
        if not self._reads(message.content):
            return []
        if any(isinstance(piece, str) and CALL_SLOT.search(piece) for piece in self.function):
            return [piece for call in parse_tool_calls(message.content) for piece in _fill_call(self.function, call)]
        before, calls = self.split_call(message.content)
        return _fill(self.function, before + self.tools.write_calls(parse_tool_calls(calls)))

    def _reads(self, text: str) -> bool:
        """Whether a call or description of tools is written (or refused), rather than left out."""
        if self.rules is not Rules.LLAMA_FACTORY_0_8:
            return True
        try:
            json.loads(text)
        except ValueError:
            return False
        except RecursionError:
            pass
        return True

    def split_call(self, content: str) -> tuple[str, str]:
        """What stands in front of a call (a thought, say), and the call as JSON."""
        marked = re.search("<tool_call>(.*?)</tool_call>", content, re.DOTALL)
        if marked:
            return content.replace(marked.group(0), ""), marked.group(1)
        thought = self._thought_pattern().search(content)
        return (thought.group(0), content.replace(thought.group(0), "")) if thought else ("", content)

    def without_thought(self, content: str) -> str:
        """An answer without its thoughts."""
        return self._thought_pattern().sub("", content).lstrip("\n")

    def _thought_pattern(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.thought[0]) + "(.*?)" + re.escape(self.thought[1]), re.DOTALL)


def _fill(pieces: tuple[Piece, ...], content: str, turn: int | None = None) -> list[FilledPiece]:
    """The pieces with a message in its slot; what looks like a slot within the message is text."""
    filled: list[FilledPiece] = []
    for piece in pieces:
        if isinstance(piece, str) and turn is not None:
            piece = piece.replace(ROUND, str(turn), 1)
        if isinstance(piece, str) and SLOT in piece:
            before, after = piece.split(SLOT, 1)
            filled.append(Text(before, content, after))
        else:
            filled.append(piece)
    return filled


def _fill_call(pieces: tuple[Piece, ...], call: ToolCall) -> list[FilledPiece]:
    values = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return [
        Text("", CALL_SLOT.sub(lambda slot: values[slot[1]], piece), "") if isinstance(piece, str) else piece
        for piece in pieces
    ]
