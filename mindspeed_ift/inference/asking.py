"""What a checkpoint says of its training in, an encoder that asks as training did out."""

from __future__ import annotations

import os
from typing import Any

from mindspeed_ift.config.asking import AskedModel
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.encode import EncodeOptions, Encoder
from mindspeed_ift.data.template_certificate import KEY, check_certificate, check_tokenizer
from mindspeed_ift.data.template_choice import check_definition, find_row, get_template, make_encoder
from mindspeed_ift.data.tokenizer import load_tokenizer


def make_asking_encoder(config: AskedModel, facts: dict[str, Any]) -> Encoder:
    """Writes prompts as training wrote them, unless the flags ask for something else.

    Args:
        config: flags.
        facts: of the checkpoint, as `load.Loaded` has them.

    Raises:
        UserError: no tokenizer is known, or the template or the tokenizer is not that of the checkpoint any more.
    """
    path = config.tokenizer_name_or_path or facts.get("tokenizer")
    if path is None:
        raise UserError(
            "--tokenizer-name-or-path is missing, and the checkpoint names no tokenizer; give the one of its training"
        )
    name = config.prompt_type or facts.get("prompt_type") or "qwen3"
    trained = facts if facts.get("prompt_type") == name else {}
    row = find_row(name, config.prompt_type_path) or trained.get("template_row")
    thinking = config.enable_thinking or facts.get("enable_thinking") or "none"
    template = get_template(name, row, config.prompt_type_path or f"--load {config.load}")
    tokenizer = load_tokenizer(path)
    encoder = make_encoder(template, tokenizer, EncodeOptions(enable_thinking=thinking))
    check_definition(encoder.fingerprint, trained.get("template_sha256"), name, f"--load {config.load}")
    check_certificate(facts.get(KEY), facts.get("template_sha256"), f"--load {config.load}")
    check_tokenizer(facts.get(KEY), tokenizer, f"--load {config.load}")
    if facts.get("prompt_type") not in (None, "", name) and os.environ.get("RANK", "0") == "0":
        print(f"notice: asked with --prompt-type {name}, but the model was trained with {facts['prompt_type']}")
    return encoder
