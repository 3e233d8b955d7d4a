"""``--prompt-type hf``: the tokenizer's own chat template writes the conversation; answers are found in what it wrote."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.conversation import (
    Conversation,
    DropRecord,
    Message,
    Role,
    check_turns,
    parse_tool_calls,
    parse_tools,
)
from mindspeed_ift.data.cutting import Pair
from mindspeed_ift.data.encode import EncodeOptions, Encoder, TemplateMismatch, Written
from mindspeed_ift.data.templates import SLOT, Rules, Template
from mindspeed_ift.data.tokenizer import Tokenizer

CHAT_TEMPLATE = Template(name="hf", user=(SLOT,), observation=(SLOT,), rules=Rules.LLAMA_FACTORY_0_9, thinking=True)
"""Stands for the tokenizer's chat template; only its name and its rules for cutting are used."""

_ANSWER = "This is the answer."
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def chat_messages(conversation: Conversation, always_system: bool = False) -> list[dict[str, Any]]:
    """A conversation in the form of `apply_chat_template`: role and content, calls apart.

    Args:
        conversation: What to write.
        always_system: Begin with a message of the system, if need be an empty one.

    Raises:
        DropRecord: A call cannot be read.
    """
    messages: list[dict[str, Any]] = []
    if conversation.system or always_system:
        messages.append({"role": "system", "content": conversation.system})
    for message in conversation.messages:
        if message.role is Role.OBSERVATION:
            messages += [{"role": "tool", "content": text} for text in message.results or (message.content,)]
        elif message.role is Role.FUNCTION:
            before, calls = CHAT_TEMPLATE.split_call(message.content)
            if message.content.endswith("</tool_call>"):
                before = before.removesuffix("\n")  # Which parts text from its call; the chat template writes its own.
            functions = [{"name": call.name, "arguments": call.arguments} for call in parse_tool_calls(calls)]
            messages.append(
                {
                    "role": "assistant",
                    "content": before,
                    "tool_calls": [{"type": "function", "function": function} for function in functions],
                }
            )
        else:
            messages.append({"role": message.role.value, "content": message.content})
    return messages


def render_chat(
    tokenizer: Tokenizer,
    conversation: Conversation,
    generation_prompt: bool = False,
    always_system: bool = False,
    **options: Any,
) -> str:
    """What the tokenizer's chat template writes.

    Args:
        tokenizer: With a chat template.
        conversation: May end in a prompt.
        generation_prompt: Go on to where the model answers.
        always_system: See `chat_messages`.
        options: For the template (``enable_thinking``, say).

    Raises:
        DropRecord: The template refuses the conversation, or a call or tool cannot be read.
        UserError: The template itself cannot be used.
    """
    return _render(tokenizer, conversation, generation_prompt, always_system, **options)[0]


def _render(
    tokenizer: Tokenizer,
    conversation: Conversation,
    generation_prompt: bool = False,
    always_system: bool = False,
    **options: Any,
) -> tuple[str, list[tuple[int, int]]]:
    from jinja2 import TemplateError

    assert tokenizer.chat_template is not None
    messages = chat_messages(conversation, always_system)
    tools = parse_tools(conversation.tools) if conversation.tools.strip() else None
    try:
        return tokenizer.chat_template.render(messages, tools or None, generation_prompt, **options)
    except UserError:
        raise
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise DropRecord(f"the chat template refuses it ({' '.join(str(error).split())})") from None


class ChatTemplateEncoder(Encoder):
    """Encodes conversations with the tokenizer's chat template: the ids are those of its `apply_chat_template`.

    Answers are what stands between the template's marks (``{% generation %}``); where it has none, what follows the
    prompt. What follows the last answer's closing mark is not kept.

    Args:
        template: `CHAT_TEMPLATE`.
        tokenizer: With a chat template.
        options: What is learnt, how long samples may be.

    Raises:
        UserError: There is no chat template, or it cannot do what the options ask.
    """

    always_system = False
    """See `chat_messages`."""

    def __init__(self, template: Template, tokenizer: Tokenizer, options: EncodeOptions) -> None:
        super().__init__(template, tokenizer, options)
        if tokenizer.chat_template is None:
            raise UserError(
                f"--prompt-type {template.name}: tokenizer {tokenizer.path} has no chat template; name one of the built-in"
                " templates"
            )
        for flag, given in (
            ("--escape-special-tokens", options.escape_special_tokens),
            ("--drop-thinking", options.drop_thinking),
        ):
            if given:
                raise UserError(
                    f"{flag} does not go with --prompt-type {template.name}, whose template decides; leave it out"
                )
        self._source = tokenizer.chat_template.source
        self._marked = _MARK.search(self._source) is not None
        self._template_options = (
            {} if options.enable_thinking == "none" else {"enable_thinking": options.enable_thinking == "true"}
        )
        self.stop_ids = [self.end_id, *self.turn_end_ids()[:1]]

    @property
    def fingerprint(self) -> str:
        """sha256 of the chat template."""
        return hashlib.sha256(self._source.encode()).hexdigest()

    def prompt_ids(self, messages: Sequence[Message], system: str = "", tools: str = "") -> list[int]:
        """See `Encoder.prompt_ids`."""
        check_turns([*messages, Message(Role.ASSISTANT, "")])
        return self._prompt(Conversation(tuple(messages), system, tools))

    def turn_end_ids(self) -> list[int]:
        """See `Encoder.turn_end_ids`."""
        text = self._text(Conversation((Message(Role.USER, "Question?"), Message(Role.ASSISTANT, _ANSWER))))
        return self.tokenizer.encode(text.partition(_ANSWER)[2])

    def write(self, conversations: Sequence[Conversation]) -> list[Written | DropRecord]:
        """See `Encoder.write`."""
        written: list[Written | DropRecord] = []
        for conversation in conversations:
            try:
                turns = self._marked_turns(conversation) if self._marked else self._turns(conversation)
                texts = [text for message in conversation.messages for text in (message.content, *message.results)]
                seen = any(map(self.pieces.special.stand_in, [*texts, conversation.system, conversation.tools]))
                written.append(Written(turns, self._special_note(seen)))
            except DropRecord as reason:
                written.append(reason)
        return written

    def _marked_turns(self, conversation: Conversation) -> list[Pair]:
        """Turns by the template's own marks: a run of tokens outside of them, and the run within that follows."""
        ids, learnt = self.tokenizer.encode_spans(*_render(self.tokenizer, conversation, **self._template_options))
        turns: list[Pair] = []
        source: list[int] = []
        target: list[int] = []
        for token, answers in zip(ids, learnt):
            if target and not answers:
                turns.append((source, target))
                source, target = [], []
            (target if answers else source).append(token)
        if target:
            turns.append((source, target))
        return turns

    def _turns(self, conversation: Conversation) -> list[Pair]:
        """Turns by prefix difference: an answer is what the whole has beyond its prompt."""
        whole = self.tokenizer.encode(self._text(conversation))
        last = len(conversation.messages) - 2
        turns, done = [], 0
        for start in [last] if self.options.mask_history else range(0, last + 1, 2):
            prompt = self._prompt(_first(conversation, start + 1))
            end = whole if start == last else self.tokenizer.encode(self._text(_first(conversation, start + 2)))
            for part, name in ((prompt, "prompt"), (end, "answer")):
                if whole[: len(part)] != part or len(part) < done:
                    raise TemplateMismatch(self._mismatch(name, start, last))
            turns.append((whole[done : len(prompt)], whole[len(prompt) : len(end)]))
            done = len(end)
        return turns

    def _mismatch(self, name: str, start: int, last: int) -> str:
        """
        Args:
            name: What is not the beginning of the whole.
            start: Place of its prompt.
            last: Place of the last prompt.
        """
        remedy = "name a built-in template"
        if last and not self.options.mask_history:
            remedy = f"add --mask-history, which learns the last answer only, or {remedy}"
        return (
            f"--prompt-type hf: up to its {name} {start // 2 + 1} the chat template of {self.tokenizer.path} does not"
            " write the conversation as it does within the whole, so the model would be trained on what it never"
            f" sees; {remedy}"
        )

    def _text(self, conversation: Conversation) -> str:
        return render_chat(self.tokenizer, conversation, always_system=self.always_system, **self._template_options)

    def _prompt(self, conversation: Conversation) -> list[int]:
        return self.tokenizer.encode(
            render_chat(self.tokenizer, conversation, True, self.always_system, **self._template_options)
        )


def _first(conversation: Conversation, count: int) -> Conversation:
    return Conversation(conversation.messages[:count], conversation.system, conversation.tools)
