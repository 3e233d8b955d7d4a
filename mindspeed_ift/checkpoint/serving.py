"""What an engine has to know of an exported model besides its weights: where an answer ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspeed_ift.data.encode import EncodeOptions
from mindspeed_ift.data.template_choice import get_template, make_encoder
from mindspeed_ift.data.tokenizer import load_tokenizer


def answers_end(facts: Mapping[str, Any], tokenizer_folder: Path | None) -> dict[str, list[int]]:
    """``eos_token_id`` of config.json and generation_config.json, without which transformers' generate never stops.

    Args:
        facts: of the checkpoint: ``prompt_type`` and ``template_row`` where it knows its template.
        tokenizer_folder: the one that is exported.

    Returns:
        The tokens at which `inference` stops: the template's end of turn and stop words, or the tokenizer's end without a
        template, and the padding token; nothing without a tokenizer.

    Raises:
        UserError: the tokenizer or the template cannot be used.
    """
    if tokenizer_folder is None or not (tokenizer_folder / "tokenizer.json").is_file():
        return {}
    tokenizer = load_tokenizer(tokenizer_folder)
    ends = [tokenizer.eod_id]
    if name := facts.get("prompt_type"):
        template = get_template(name, facts.get("template_row"), "the checkpoint")
        ends = make_encoder(template, tokenizer, EncodeOptions()).stop_ids
    return {"eos_token_id": list(dict.fromkeys([*ends, tokenizer.pad_id]))}
