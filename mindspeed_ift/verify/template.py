"""Records, template and tokenizer in, a report out: does a served model see what it was trained on?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mindspeed_ift.config.verify_template import VerifyTemplateConfig
from mindspeed_ift.data.certify import Report, certify
from mindspeed_ift.data.conversation import Conversation, Message, Role
from mindspeed_ift.data.encode import EncodeOptions
from mindspeed_ift.data.handlers import check_handler
from mindspeed_ift.data.modes import encode_options
from mindspeed_ift.data.reading import open_conversations
from mindspeed_ift.data.template_certificate import KEY, check_certificate, check_tokenizer
from mindspeed_ift.data.template_choice import get_template, make_encoder, template_for
from mindspeed_ift.data.tokenizer import load_tokenizer

_QUESTION = Conversation((Message(Role.USER, "one"), Message(Role.ASSISTANT, "two")))
_QUESTIONS = [("", _QUESTION), ("", replace(_QUESTION, system="be kind"))]
"""What an exported tokenizer is asked: what every user of the model will send."""


def verify_template(config: VerifyTemplateConfig) -> Report:
    """Compare the records that ``config`` names.

    Raises:
        UserError: Records, template or tokenizer cannot be used, or no record is a sample.
    """
    config.check()
    check_handler(config.handler_name)
    preparation = config.preparation()
    template, _ = template_for(preparation)
    tokenizer = load_tokenizer(config.tokenizer_folder, config.trust_remote_code)
    form, conversations = open_conversations(preparation, config.max_samples)
    encoder = make_encoder(template, tokenizer, encode_options(preparation, template, form.makes_pairs))
    return certify(encoder, tokenizer, conversations, config.examples)


def serving_notice(facts: Mapping[str, Any], folder: Path) -> str | None:
    """A line where the tokenizer of an exported model writes prompts otherwise than its training did.

    Args:
        facts: What the checkpoint says of its training: template and certificate.
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
        recorded = facts.get(KEY)
        return check_tokenizer(recorded, tokenizer, str(folder)) or check_certificate(
            recorded, facts.get("template_sha256"), str(folder)
        )
    _, difference = found.modes[0].examples[0]
    return (
        f"the chat template of {folder} writes another conversation than training did (--prompt-type {name}; first"
        f" difference: {difference.kind}): served with it the model sees what it was not trained on; {remedy}"
    )
