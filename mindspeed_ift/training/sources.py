"""Flags in, where a run starts from out: whose weights it takes, whose adapters, and whose training it continues."""

from __future__ import annotations

from collections.abc import Mapping
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
        notices: a line for each damaged checkpoint that was passed over.
    """

    hugging_face: Path | None = None
    weights: Path | None = None
    adapters: Path | None = None
    resume: Path | None = None
    notices: tuple[str, ...] = ()


def find_sources(config: TuneConfig, damaged: Mapping[Path, str] | None = None) -> Sources:
    """Look at ``--load`` and ``--lora-load``; where training is continued, a damaged checkpoint gives way to the one
    before.

    Args:
        config: of the run.
        damaged: checkpoints that cannot be used, and why, beside those that a look at the sizes of their files finds.

    Raises:
        UserError: there is no checkpoint, or its adapters are not those that the flags describe.
    """
    run, finder = config.run, _Finder(config, dict(damaged or {}))
    hugging_face = run.load if run.enable_hf2mg_convert else None
    weights = finder.newest("--load", run.load) if hugging_face is None and run.load is not None else None
    if config.lora.active:
        adapters = _find_adapters(config, weights, finder)
        if hugging_face is None and weights is None:
            weights = adapters
        if hugging_face is None:
            _refuse_adapters_without_weights(config, weights)
        return Sources(hugging_face, weights, adapters, None if run.finetune else adapters, finder.notices)
    if weights is not None and adapters_of(weights) is not None:
        raise UserError(
            f"{weights} was trained with adapters; give its --lora-target-modules, or merge them with"
            " tools/convert_ckpt.py"
        )
    begun = run.finetune or weights is None or _converted(weights)
    return Sources(hugging_face, weights, None, None if begun else weights, finder.notices)


def _converted(checkpoint: Path) -> bool:
    """Whether it has weights and nothing that a training would be continued with, or is of another toolkit."""
    manifest = megatron.read_manifest(checkpoint)
    return manifest is None or bool(manifest.get("weights_only"))


def _refuse_adapters_without_weights(config: TuneConfig, weights: Path | None) -> None:
    """Adapters that would start from no weights, or that no weights would be known of later."""
    if weights is not None and (adapters_of(weights) or {}).get("filtered"):
        raise UserError(f"{weights} holds adapters only; give --load with the weights that they were trained on")
    if weights is None and config.lora.lora_ckpt_filter:
        raise UserError("--lora-ckpt-filter would save no weights, and --load gives none; leave it out, or give --load")


def _find_adapters(config: TuneConfig, weights: Path | None, finder: _Finder) -> Path | None:
    """The checkpoint whose adapters are taken: of ``--lora-load``, else of ``--load`` if it has some."""
    folder = config.lora.lora_load
    if folder is not None:
        adapters = finder.newest("--lora-load", folder)
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
            raise UserError(
                f"{checkpoint} was trained with --{name.replace('_', '-')} {value}, not {given}; give the same"
            )


def loaded_architecture(config: TuneConfig, sources: Sources) -> dict[str, Architecture]:
    """What --load says of the model: config.json of a Hugging Face folder, or the manifest of a checkpoint."""
    if sources.hugging_face is not None:
        return {f"--load {sources.hugging_face}": Architecture.from_hugging_face(sources.hugging_face)}
    manifest = megatron.read_manifest(sources.weights) if sources.weights is not None else None
    origin = f"--load {config.run.load or config.lora.lora_load}"
    return {origin: Architecture(**manifest["architecture"])} if manifest is not None else {}


class _Finder:
    """Finds the newest whole checkpoint of a folder, and notes what it passes over.

    Args:
        config: of the run.
        damaged: checkpoints that cannot be used, and why.
    """

    def __init__(self, config: TuneConfig, damaged: dict[Path, str]) -> None:
        self.config, self.damaged = config, damaged
        self.notices: tuple[str, ...] = ()

    def newest(self, flag: str, folder: Path) -> Path | None:
        """A checkpoint; None at the first start of a script that resumes what it saves.

        Raises:
            UserError: there is none, or none that is whole.
        """
        run = self.config.run
        found = megatron.checkpoints(folder)
        if not found and (folder != run.save or run.exit_on_missing_checkpoint):
            remedy = "add --enable-hf2mg-convert" if (folder / "config.json").is_file() else "give a --save folder"
            raise UserError(f"{flag} {folder} holds no Megatron checkpoint; {remedy}")
        # What is not continued is taken for its weights, and those of another step are other weights.
        continued = not run.finetune and (flag == "--lora-load" or self.config.lora.lora_load is None)
        if not found or not continued:
            return found[0] if found else None
        reasons = []
        for checkpoint in found:
            reason = self.damaged.get(checkpoint) or megatron.damage(checkpoint)
            if reason is None:
                self.notices += tuple(f"notice: {one}; going on from {checkpoint.name}" for one in reasons)
                return checkpoint
            reasons.append(reason)
        raise UserError(
            f"{flag} {folder} holds no checkpoint that is whole: {reasons[0]}; restore it from a copy, or begin anew "
            "in another folder"
        )
