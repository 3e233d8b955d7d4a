"""Records, template and tokenizer in, a certificate out: does a served model see what it was trained on?"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.verify_template import VerifyTemplateConfig
from mindspeed_ift.data.conversation import Conversation, DropRecord, Message, PreferencePair, Role
from mindspeed_ift.data.encode import EncodeOptions, Encoder
from mindspeed_ift.data.formats import PEEKED, TextFormat, check_handler, make_format
from mindspeed_ift.data.preprocess import encode_options
from mindspeed_ift.data.records import find_datasets, read_records
from mindspeed_ift.data.template_certificate import Certificate
from mindspeed_ift.data.template_choice import find_row, get_template, make_encoder
from mindspeed_ift.data.tokenizer import Tokenizer, load_tokenizer
from mindspeed_ift.verify import comparison
from mindspeed_ift.verify.comparison import Difference, compare

Sample = tuple[str, Conversation | DropRecord]
"""Where a record comes from, and its conversation or why it has none."""

_QUESTION = Conversation((Message(Role.USER, "one"), Message(Role.ASSISTANT, "two")))
_QUESTIONS = [("", _QUESTION), ("", replace(_QUESTION, system="be kind"))]
"""What an exported tokenizer is asked: what every user of the model will send."""


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


def verify_template(config: VerifyTemplateConfig) -> Report:
    """Compare the records that ``config`` names.

    Raises:
        UserError: Records, template or tokenizer cannot be used, or no record is a sample.
    """
    config.check()
    check_handler(config.handler_name)
    row = find_row(config.prompt_type, config.prompt_type_path)
    template = get_template(config.prompt_type, row, config.prompt_type_path)
    tokenizer = load_tokenizer(config.tokenizer_folder, config.trust_remote_code)
    encoder = make_encoder(template, tokenizer, encode_options(config.preparation(), template))
    return certify(encoder, tokenizer, _samples(config), config.examples)


def certify(encoder: Encoder, tokenizer: Tokenizer, samples: Iterable[Sample], examples: int = 0) -> Report:
    """Compare conversations, once for each way the chat template can be asked.

    Args:
        encoder: As training writes.
        tokenizer: That it was made with, as it will serve.
        samples: The records.
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
    for origin, conversation in samples:
        try:
            if isinstance(conversation, DropRecord):
                raise conversation
            found = [compare(encoder, conversation, mode.serve_with) for mode in modes]
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
        chat_template_sha256=hashlib.sha256(source.encode()).hexdigest(),
        serve_with=modes[0].serve_with,
        records=records,
        equal=modes[0].equal,
        prompts_equal=modes[0].prompts_equal,
        differ=dict(modes[0].differ.most_common()),
        left_out=dict(left_out.most_common()),
    )
    return Report(certificate, modes, encoder)


def serving_notice(facts: Mapping[str, Any], folder: Path) -> str | None:
    """A line where the tokenizer of an exported model writes prompts otherwise than its training did.

    Args:
        facts: ``prompt_type``, ``template_row``, ``enable_thinking`` of the checkpoint.
        folder: Exported, with its tokenizer.

    Raises:
        UserError: The tokenizer or the template cannot be used.
    """
    name, thinking = facts.get("prompt_type"), facts.get("enable_thinking") or "none"
    if not name:
        return None
    template = get_template(name, facts.get("template_row"), str(folder))
    tokenizer = load_tokenizer(folder)
    encoder = make_encoder(template, tokenizer, EncodeOptions(enable_thinking=thinking))
    remedy = f"ask with --prompt-type {name}, as generate does; verify-template shows the differences"
    if tokenizer.chat_template is None:
        return f"{folder} has no chat template: others than this toolkit cannot write the prompts of training; {remedy}"
    found = certify(encoder, tokenizer, _QUESTIONS, examples=1)
    if found.certificate.holds:
        return None
    _, difference = found.modes[0].examples[0]
    return (
        f"the chat template of {folder} writes another conversation than training did (--prompt-type {name}; first"
        f" difference: {difference.kind}): served with it the model sees what it was not trained on; {remedy}"
    )


def _count(mode: Mode, origin: str, difference: Difference | None, examples: int) -> None:
    mode.prompts_equal += difference is None or difference.where == comparison.WHOLE
    if difference is None:
        mode.equal += 1
        return
    mode.differ[difference.kind] += 1
    if len(mode.examples) < examples and mode.differ[difference.kind] == 1:
        mode.examples.append((origin, difference))


def _samples(config: VerifyTemplateConfig) -> Iterator[Sample]:
    datasets = find_datasets(config.input)
    records = islice((pair for _, files in datasets for pair in read_records(files)), config.max_samples)
    first = list(islice(records, PEEKED))
    if not first:
        return
    keys, names = config.preparation(), ", ".join(name for name, _ in datasets)
    form = make_format(config.handler_name, keys.mapped_keys(), keys.json_keys, [record for record, _ in first], names)
    if isinstance(form, TextFormat):
        raise UserError(f"{names} holds plain text, which no template writes; give conversations")
    for record, origin in chain(first, records):
        try:
            found = form.convert(record)
            yield str(origin), found.chosen if isinstance(found, PreferencePair) else found
        except DropRecord as reason:
            yield str(origin), reason
