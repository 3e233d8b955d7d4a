"""``torchrun --max-restarts``: processes that are started again go on from what the run has saved, whatever --load says."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.config.tuning import TuneConfig
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.training.plan import Plan
from mindspeed_ift.training.sources import find_sources

_MARK = ".started.json"


def after_restart(plan: Plan, groups: Groups) -> Plan:
    """The plan, or where processes were started again what goes on from their checkpoints; see `flags_after_restart`."""
    config = flags_after_restart(plan.config, groups)
    if config == plan.config:
        return plan
    groups.say(f"started again by torchrun: going on from {config.run.save}")
    return replace(plan, config=config, sources=find_sources(config))


def flags_after_restart(config: TuneConfig, groups: Groups) -> TuneConfig:
    """The flags to go on with: those of the line at the first attempt, or where nothing was saved since.

    The first attempt leaves a mark in --save, so that what another run has left there is not taken for this one's.

    Args:
        config: of the line.
        groups: all ranks go the same way; on several machines not all of them need have been restarted.
    """
    save = config.run.save
    if save is None or not int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        return config
    if save in (config.run.load, config.lora.lora_load) and not config.run.finetune:
        return config  # the line goes on from there by itself
    attempts = groups.gather(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
    going_on = False
    if groups.rank == 0:
        if max(attempts):
            going_on = _read_mark(save) != _newest(save)
        else:
            save.mkdir(parents=True, exist_ok=True)
            (save / _MARK).write_text(json.dumps(_newest(save)), encoding="utf-8")
    return _from_save(config, save) if groups.gather(going_on)[0] else config


def forget(config: TuneConfig) -> None:
    """Remove the mark, once the run has ended as it should."""
    if config.run.save is not None:
        (config.run.save / _MARK).unlink(missing_ok=True)


def _newest(save: Path) -> list[str | int] | None:
    """What the tracker says, and since when."""
    path = save / megatron.TRACKER
    return [path.read_text(encoding="utf-8"), path.stat().st_mtime_ns] if path.is_file() else None


def _read_mark(save: Path) -> list[str | int] | None:
    path = save / _MARK
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # killed before it was there: before anything was saved
        return _newest(save)


def _from_save(config: TuneConfig, save: Path) -> TuneConfig:
    run = replace(config.run, finetune=False, load_optim=True, load_rng=True)
    if config.lora.active and config.run.load is not None:  # what is saved may be adapters without their weights
        return replace(config, run=run, lora=replace(config.lora, lora_load=save))
    return replace(config, run=replace(run, load=save, enable_hf2mg_convert=False))
