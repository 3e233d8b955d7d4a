"""Conversations, template and tokenizer in, a certificate out: does a served model see what it was trained on?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data import template_comparison
from mindspeed_ift.data.conversation import DropRecord, LeaveOut
from mindspeed_ift.data.encode import Encoder
from mindspeed_ift.data.formats import Format
from mindspeed_ift.data.reading import Converted, conversations_of
from mindspeed_ift.data.records import Origin, Record
from mindspeed_ift.data.template_certificate import Certificate, chat_template_sha256, no_certificate
from mindspeed_ift.data.template_comparison import Difference, compare
from mindspeed_ift.data.text_formats import TextFormat
from mindspeed_ift.data.tokenizer import Tokenizer

_COMPARED = 64
_CHARACTERS = 1 << 18
"""Preparation compares so many of its first conversations, or until so much has been written."""


@dataclass
class Mode:
    """What one way to serve came to.

    Attributes:
        serve_with: Options of the chat template, and ``system`` for a system prompt that the client sends.
        equal: Records without a difference.
        prompts_equal: Records whose prompts have none.
        differ: Kind of difference -> records.
        examples: Origin and first difference of some records, of as many kinds as there are.
    """

    serve_with: dict[str, bool | str]
    equal: int = 0
    prompts_equal: int = 0
    differ: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, Difference]] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """What a comparison found.

    Attributes:
        certificate: Of the best way to serve.
        modes: All ways that were tried, the best one first.
        encoder: As training writes; decodes ids.
    """

    certificate: Certificate
    modes: list[Mode]
    encoder: Encoder


def certify(encoder: Encoder, tokenizer: Tokenizer, conversations: Iterable[Converted], examples: int = 0) -> Report:
    """Compare conversations, once for each way the chat template can be asked.

    Args:
        encoder: As training writes.
        tokenizer: That it was made with, as it will serve.
        conversations: Of the records.
        examples: How many differences to keep of each way.

    Raises:
        UserError: The tokenizer has no chat template, or no record is a sample.
    """
    if tokenizer.chat_template is None:
        raise UserError(f"tokenizer {tokenizer.path} has no chat template, so there is nothing to compare with")
    source = tokenizer.chat_template.source
    thinking: list[dict[str, bool | str]] = [{}]
    if "enable_thinking" in source:
        thinking += [{"enable_thinking": False}, {"enable_thinking": True}]
    systems = [{}, *([{"system": encoder.template.default_system}] if encoder.template.default_system else [])]
    modes = [Mode({**system, **option}) for system in systems for option in thinking]
    records, left_out = 0, Counter[str]()
    for origin, conversation in conversations:
        try:
            if isinstance(conversation, DropRecord):
                raise conversation
            turns = encoder.turn_ids(conversation)
            found = [compare(encoder, conversation, turns, mode.serve_with) for mode in modes]
        except DropRecord as reason:
            left_out[str(reason)] += 1
            continue
        records += 1
        for mode, difference in zip(modes, found):
            _count(mode, origin, difference, examples)
    if not records:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "there are none"
        raise UserError(f"no record could be compared: {reasons}; give --input records that are samples")
    # Stable, so that of equals the one without options is taken.
    modes.sort(key=lambda mode: (-mode.equal, -mode.prompts_equal))
    certificate = Certificate(
        prompt_type=encoder.template.name,
        template_sha256=encoder.fingerprint,
        enable_thinking=encoder.options.enable_thinking,
        tokenizer_sha256=tokenizer.fingerprint,
        chat_template_sha256=chat_template_sha256(tokenizer.chat_template) or "",
        serve_with=modes[0].serve_with,
        records=records,
        equal=modes[0].equal,
        prompts_equal=modes[0].prompts_equal,
        differ=dict(modes[0].differ.most_common()),
        left_out=dict(left_out.most_common()),
    )
    return Report(certificate, modes, encoder)


def certify_first(
    encoder: Encoder | None, tokenizer: Tokenizer, form: Format, first: Sequence[tuple[Record, Origin]]
) -> dict[str, Any]:
    """The certificate that a preparation puts into its manifest: of the first conversations, the same for any workers.

    Args:
        encoder: As training writes; None for plain text.
        tokenizer: That it was made with, as it will serve.
        form: How records are read.
        first: The first records.

    Returns:
        As the manifest keeps it; of verdict "none", with the reason, where nothing can be compared.
    """
    if encoder is None or isinstance(form, TextFormat):
        return no_certificate("plain text is written by no template", tokenizer)
    try:
        if tokenizer.chat_template is None:
            return no_certificate("the tokenizer has no chat template", tokenizer, encoder)
        return certify(encoder, tokenizer, _first(conversations_of(form, first))).certificate.as_dict()
    except UserError as error:
        return no_certificate(str(error), tokenizer, encoder)


def _first(conversations: Iterable[Converted]) -> Iterator[Converted]:
    """As many as can be compared in a moment."""
    count = written = 0
    for origin, conversation in conversations:
        if isinstance(conversation, DropRecord):
            yield origin, conversation
            continue
        messages = conversation.messages
        length = sum(len(text) for message in messages for text in (message.content, *message.results))
        # Each prompt is written with all that is before it.
        length = (length + len(conversation.system) + len(conversation.tools)) * (len(messages) // 2)
        if length > _CHARACTERS:
            yield origin, LeaveOut("too long to be compared in a moment")
            continue
        count, written = count + 1, written + length
        yield origin, conversation
        if count == _COMPARED or written > _CHARACTERS:
            return


def _count(mode: Mode, origin: str, difference: Difference | None, examples: int) -> None:
    mode.prompts_equal += difference is None or difference.where == template_comparison.WHOLE
    if difference is None:
        mode.equal += 1
        return
    mode.differ[difference.kind] += 1
    if len(mode.examples) < examples and mode.differ[difference.kind] == 1:
        mode.examples.append((origin, difference))
