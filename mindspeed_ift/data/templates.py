"""Conversation in, pieces of text out: what stands around each message, in one table.

A piece is encoded by itself (no token reaches from one into the next), as LLaMA-Factory does; which pieces a turn is
cut into is therefore part of a template. `TEMPLATES` is the table; a new template is a new row.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, replace
from enum import Enum

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data import tool_formats
from mindspeed_ift.data.conversation import Conversation, DropRecord, Message, Role, parse_tool_calls, parse_tools
from mindspeed_ift.data.tool_formats import ToolFormat

SLOT = "{content}"
"""Where a piece of a template takes the message."""


class Token(Enum):
    """A piece that is one token of the tokenizer, not text."""

    END = "end"
    """The token that closes a turn: the template's, else the tokenizer's end of sequence."""
    BEGIN = "begin"
    """The tokenizer's beginning of sequence; nothing where it has none."""


Piece = str | Token


class Cut(Enum):
    """How a turn that is too long is cut (see encode.py)."""

    PROPORTIONAL = "proportional"
    """LLaMA-Factory 0.8.2: the answer gets its share of the room, the prompt the rest."""
    BALANCED = "balanced"
    """Later LLaMA-Factory: of a short side nothing is cut."""


@dataclass(frozen=True)
class Turn:
    """A prompt and its answer, as pieces; only the answer is learnt."""

    source: list[Piece]
    target: list[Piece]


@dataclass(frozen=True)
class Template:
    """One chat template.

    Attributes:
        name: Its name for ``--prompt-type``.
        user, observation, assistant, function, system: Pieces around a message of that kind, `SLOT` within.
        observation_join: Between the results of parallel calls.
        separator: In front of every turn but the first.
        prefix: In front of everything.
        default_system: System prompt of conversations without one; "" for none.
        end_token: The token that closes a turn and serves as end of document; None takes the tokenizer's.
        tools: How tools and calls are written.
        cut: How turns are cut.
        keeps_room_for_eod: MindSpeed-LLM cuts to --seq-length with the older rule and to one less with the later.
        thought: Opening and closing of a thought.
        thinking: The template puts an empty thought where an answer has none.
    """

    name: str
    user: tuple[Piece, ...]
    observation: tuple[Piece, ...]
    assistant: tuple[Piece, ...]
    function: tuple[Piece, ...]
    system: tuple[Piece, ...]
    observation_join: str = "\n"
    separator: tuple[Piece, ...] = ()
    prefix: tuple[Piece, ...] = ()
    default_system: str = ""
    end_token: str | None = None
    tools: ToolFormat = field(default=tool_formats.ACTION)
    cut: Cut = Cut.BALANCED
    keeps_room_for_eod: bool = True
    thought: tuple[str, str] = ("<think>\n", "\n</think>\n\n")
    thinking: bool = False

    def render(
        self, conversation: Conversation, enable_thinking: str = "none", forget_thoughts: bool = False
    ) -> list[Turn]:
        """Write a conversation.

        Args:
            conversation: What to write.
            enable_thinking: "true", "false" or "none"; only a thinking template looks at it.
            forget_thoughts: Write all answers but the last without thoughts, empty ones too (as a model sees its
                history).

        Raises:
            DropRecord: A call or a tool cannot be written.
        """
        messages = conversation.messages
        turns = []
        for start in range(0, len(messages), 2):
            source = list(self.separator if start else self._opening(conversation))
            source += self._message(messages[start])
            answer = messages[start + 1]
            past = forget_thoughts and start + 2 < len(messages)
            if self.thinking and (past or enable_thinking == "false"):
                answer = replace(answer, content=self._without_thought(answer.content))
            target = self._message(answer)
            if self.thinking and not past and not any(word.strip() in answer.content for word in self.thought):
                empty = "".join(self.thought)
                if enable_thinking == "true":
                    target.insert(0, empty)
                else:
                    source.append(empty)
            turns.append(Turn(source, target))
        return turns

    def skips_call(self, message: Message) -> bool:
        """Whether this template writes nothing for a call, because it is not JSON."""
        if message.role is not Role.FUNCTION or not self.tools.skips_unreadable_calls:
            return False
        try:
            parse_tool_calls(self._split_thought(message.content)[1])
        except DropRecord:
            return True
        return False

    def closing_pieces(self) -> list[Piece]:
        """The pieces that close an answer: what follows the text in ``assistant``."""
        pieces: list[Piece] = list(self.assistant)
        while pieces:
            piece = pieces.pop(0)
            if isinstance(piece, str) and SLOT in piece:
                after = piece.split(SLOT, 1)[1]
                return ([after] if after else []) + pieces
        return []

    def _opening(self, conversation: Conversation) -> list[Piece]:
        tools = parse_tools(conversation.tools) if conversation.tools.strip() else []
        system = conversation.system or self.default_system
        if not system and not conversation.tools.strip():
            return list(self.prefix)
        return [*self.prefix, *_fill(self.system, system + (self.tools.describe(tools) if tools else ""))]

    def _message(self, message: Message) -> list[Piece]:
        if message.role is Role.FUNCTION:
            return self._calls(message)
        pieces = {Role.USER: self.user, Role.OBSERVATION: self.observation, Role.ASSISTANT: self.assistant}[
            message.role
        ]
        return _fill(pieces, self.observation_join.join(message.results) if message.results else message.content)

    def _calls(self, message: Message) -> list[Piece]:
        if self.skips_call(message):
            return []
        thought, calls = self._split_thought(message.content)
        texts = self.tools.write_calls(parse_tool_calls(calls))
        if texts:
            texts[0] = thought + texts[0]
        return [piece for text in texts for piece in _fill(self.function, text)]

    def _split_thought(self, content: str) -> tuple[str, str]:
        found = self._thought_pattern().search(content)
        return (found.group(0), content.replace(found.group(0), "")) if found else ("", content)

    def _without_thought(self, content: str) -> str:
        return self._thought_pattern().sub("", content).lstrip("\n")

    def _thought_pattern(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.thought[0]) + "(.*?)" + re.escape(self.thought[1]), re.DOTALL)


def _fill(pieces: tuple[Piece, ...], content: str) -> list[Piece]:
    return [piece.replace(SLOT, content, 1) if isinstance(piece, str) else piece for piece in pieces]


_QWEN = Template(
    name="qwen",
    user=("<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n",),
    observation=("<|im_start|>tool\n{content}<|im_end|>\n<|im_start|>assistant\n",),
    assistant=(SLOT, Token.END),
    function=(SLOT, Token.END),
    system=("<|im_start|>system\n{content}<|im_end|>\n",),
    separator=("\n",),
    default_system="You are a helpful assistant.",
    end_token="<|im_end|>",
    cut=Cut.PROPORTIONAL,
    keeps_room_for_eod=False,
)

_QWEN_LF = replace(
    _QWEN,
    name="qwen_lf",
    observation=("<|im_start|>user\n<tool_response>\n{content}\n</tool_response><|im_end|>\n<|im_start|>assistant\n",),
    observation_join="\n</tool_response>\n<tool_response>\n",
    assistant=("{content}<|im_end|>\n",),
    function=("{content}<|im_end|>\n",),
    separator=(),
    default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    tools=tool_formats.QWEN,
    cut=Cut.BALANCED,
    keeps_room_for_eod=True,
)

TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        _QWEN,
        _QWEN_LF,
        replace(_QWEN_LF, name="qwen3", default_system="", thinking=True),
    )
}
"""``--prompt-type`` -> template. Sources: LLaMA-Factory 0.8.2 (qwen) and 0.9.5 (its qwen and qwen3)."""


def get_template(name: str) -> Template:
    """The template called ``name``.

    Raises:
        UserError: There is none, with the nearest name.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    near = difflib.get_close_matches(name, TEMPLATES, 1)
    hint = f"did you mean {near[0]}?" if near else f"give one of: {', '.join(TEMPLATES)}"
    raise UserError(f"--prompt-type {name} is not a template; {hint}")
