"""Flags in, where a run starts from out: whose weights it takes, whose adapters, and whose training it continues."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.adapters import adapters_of
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.lora import LoraFlags
from mindspeed_ift.config.tuning import TuneConfig


@dataclass(frozen=True)
class Sources:
    """Where a run starts from.

    Attributes:
        hugging_face: folder whose weights are taken, or None.
        weights: Megatron checkpoint whose weights are taken, or None; with both None weights are fresh.
        adapters: checkpoint whose adapters are taken, or None for fresh ones.
        resume: checkpoint whose training is continued, or None for step 0.
    """

    hugging_face: Path | None = None
    weights: Path | None = None
    adapters: Path | None = None
    resume: Path | None = None


def find_sources(config: TuneConfig) -> Sources:
    """Look at ``--load`` and ``--lora-load``.

    Raises:
        UserError: there is no checkpoint, or its adapters are not those that the flags describe.
    """
    run = config.run
    hugging_face = run.load if run.enable_hf2mg_convert else None
    weights = _newest(config, "--load", run.load) if hugging_face is None and run.load is not None else None
    if config.lora.active:
        adapters = _find_adapters(config, weights)
        if hugging_face is None and weights is None:
            weights = adapters
        if weights is not None and (adapters_of(weights) or {}).get("filtered"):
            raise UserError(f"{weights} holds adapters only; give --load with the weights that they were trained on")
        return Sources(hugging_face, weights, adapters, None if run.finetune else adapters)
    if weights is not None and adapters_of(weights) is not None:
        raise UserError(
            f"{weights} was trained with adapters; give its --lora-target-modules, or merge them with"
            " tools/convert_ckpt.py"
        )
    return Sources(hugging_face, weights, None, None if run.finetune else weights)


def _find_adapters(config: TuneConfig, weights: Path | None) -> Path | None:
    """The checkpoint whose adapters are taken: of ``--lora-load``, else of ``--load`` if it has some."""
    folder = config.lora.lora_load
    if folder is not None:
        adapters = _newest(config, "--lora-load", folder)
    else:
        adapters = weights if weights is not None and adapters_of(weights) is not None else None
    if adapters is not None:
        check_adapters(config.lora, adapters)
    return adapters


def check_adapters(lora: LoraFlags, checkpoint: Path) -> None:
    """Refuse adapters of another shape or kind.

    Raises:
        UserError: naming the flag.
    """
    saved = adapters_of(checkpoint)
    if saved is None:
        raise UserError(f"--lora-load {checkpoint} has no adapters; give the --save folder of a run with adapters")
    for name, value in saved.items():
        given = getattr(lora, name, value)
        if name.startswith("lora_target") or name.startswith("lora_modules"):
            given, value = sorted(given), sorted(value)
        if given != value:
            raise UserError(f"{checkpoint} was trained with --{name.replace('_', '-')} {value}, not {given}")


def loaded_architecture(config: TuneConfig, sources: Sources) -> dict[str, Architecture]:
    """What --load says of the model: config.json of a Hugging Face folder, or the manifest of a checkpoint."""
    if sources.hugging_face is not None:
        return {f"--load {sources.hugging_face}": Architecture.from_hugging_face(sources.hugging_face)}
    manifest = megatron.read_manifest(sources.weights) if sources.weights is not None else None
    origin = f"--load {config.run.load or config.lora.lora_load}"
    return {origin: Architecture(**manifest["architecture"])} if manifest is not None else {}


def _newest(config: TuneConfig, flag: str, folder: Path) -> Path | None:
    """The newest checkpoint of a folder; None at the first start of a script that resumes what it saves."""
    checkpoint = megatron.latest_folder(folder)
    if checkpoint is None and (folder != config.run.save or config.run.exit_on_missing_checkpoint):
        remedy = "add --enable-hf2mg-convert" if (folder / "config.json").is_file() else "give a --save folder"
        raise UserError(f"{flag} {folder} holds no Megatron checkpoint; {remedy}")
    return checkpoint
