"""Flags of a preparation in, options of the encoder out: how long samples may be in each mode, and what of them is learnt."""

from __future__ import annotations

from dataclasses import replace

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.data.encode import EncodeOptions
from mindspeed_ift.data.templates import Template


def encode_options(config: PreprocessConfig, template: Template, pairs: bool = False) -> EncodeOptions:
    """Lengths and masks of a mode, by MindSpeed-LLM's rules.

    With --seq-length S, the template first cuts a conversation to S tokens (older templates) or S - 1 (later ones);
    then samples of S or more are dropped. So a sample that is too long is dropped with the older and kept, cut, with
    the later. Neat-pack cuts each turn by itself to S - 1 and the whole to S - 1, and drops nothing. With --overlong
    the longest sample has S - 1 tokens in every mode, and the flag says what becomes of longer ones. Preference pairs
    are not cut to S without it, and their prompts and earlier answers never learnt. Nor is what handlers with prompts
    of their own write; neat-pack takes its first S - 1 tokens.
    """
    length = config.seq_length
    cutoffs = [] if config.cutoff_len is None else [config.cutoff_len]
    options = EncodeOptions(
        enable_thinking=config.enable_thinking,
        train_on_prompt=config.train_on_prompt and not pairs,
        mask_thoughts=config.mask_thoughts,
        mask_history=config.mask_history or pairs,
        drop_thinking=config.drop_thinking,
        escape_special_tokens=config.escape_special_tokens,
        append_eod=config.append_eod,
    )
    if config.overlong is not None:
        cutoffs += [] if length is None else [length - 1]
        return replace(options, overlong=config.overlong, room=min(cutoffs))
    cut_length = None if template.of_handler else length
    if cut_length is not None and not pairs:
        cutoffs.append(cut_length - 1 if template.keeps_room_for_eod else cut_length)
    return replace(
        options,
        cutoff=min(cutoffs, default=None),
        turn_limit=cut_length - 1 if cut_length is not None and config.neat_pack else None,
        limit=length,
        cut_to_limit=config.neat_pack,
    )
