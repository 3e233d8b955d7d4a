"""Flags in, what a dry run says out: the plan, or without data or weights (yet) all that follows from the flags."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mindspeed_ift.config.blending import named_datasets
from mindspeed_ift.config.layout import Layout, layout_of
from mindspeed_ift.config.resolve import resolve_architecture
from mindspeed_ift.config.rules import check_flags, check_layout, num_micro_batches
from mindspeed_ift.config.tuning import TuneConfig
from mindspeed_ift.data.dataset import is_dataset
from mindspeed_ift.training.plan import describe_architecture, describe_layout, plan
from mindspeed_ift.training.sources import find_sources, loaded_architecture


def preview(config: TuneConfig, world_size: int) -> str:
    """What a dry run says: the plan; without data or weights (yet), all that follows from the flags.

    Raises:
        UserError: as `plan`.
    """
    missing = _missing_paths(config)
    if not missing:
        planned = plan(config, world_size)
        balance = planned.describe_balance(planned.training_samples(0, config.data.shuffle).order)
        return "\n".join([planned.describe(), *([balance] if balance else [])])
    check_flags(config)
    layout = layout_of(config.layout, world_size)
    lines = [f"{flag} {path} is not here: it is not checked, nor what depends on it" for flag, path in missing.items()]
    lines += _preview_architecture(
        config, layout, weights_missing=bool({"--load", "--lora-load", "--hf-cfg-dir"} & missing.keys())
    )
    lines.append(describe_layout(layout, num_micro_batches(config, layout)))
    return "\n".join(lines)


def _preview_architecture(config: TuneConfig, layout: Layout, weights_missing: bool) -> list[str]:
    """The model as far as it is known without the tokenizer, and perhaps without the folder that describes it."""
    model, loaded = config.model, {}
    if weights_missing:
        if model.preset is None:
            return []
        model = replace(model, hf_cfg_dir=None)
    else:
        loaded = loaded_architecture(config, find_sources(config))
    known = loaded or model.preset or model.hf_cfg_dir or model.vocab_size or model.padded_vocab_size
    architecture, origin = resolve_architecture(model, loaded, 1, len(layout.noop_layers))
    check_layout(config, architecture, layout)
    return [describe_architecture(architecture, origin) if known else "the vocabulary is the tokenizer's"]


def _missing_paths(config: TuneConfig) -> dict[str, str]:
    """Flag -> the path it gives, for what is not here."""
    paths = {
        "--load": config.run.load if config.run.load != config.run.save else None,
        "--lora-load": config.lora.lora_load if config.lora.lora_load != config.run.save else None,
        "--hf-cfg-dir": config.model.hf_cfg_dir,
        "--pack-index": config.data.pack_index,
        "--tokenizer-name-or-path": config.data.tokenizer_name_or_path,
    }
    missing = {flag: str(path) for flag, path in paths.items() if path is not None and not Path(path).exists()}
    named = {"--data-path": config.data.data_path, "--valid-data-path": config.data.valid_data_path}
    prefixes = {
        flag: " ".join(prefix for prefix in named_datasets(flag, words)[0] if not is_dataset(prefix))
        for flag, words in named.items()
    }
    return {flag: told for flag, told in prefixes.items() if told} | missing
