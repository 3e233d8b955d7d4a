"""Whether a run that goes on from a checkpoint meets the data that it was trained on, in the same order, and its rates."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.tuning import TuneConfig
from mindspeed_ift.data.blending import Blend
from mindspeed_ift.data.dataset import Samples

KEY = "trained_on"
"""Of a checkpoint's manifest: what `data_facts` was then."""

OPTIMIZED = "optimized_with"
"""Of a checkpoint's manifest: what `optimizer_facts` was then."""

_LOOKED_AT = 64
_RATES = (
    *("lr", "min_lr", "lr_decay_style", "lr_decay_iters", "lr_warmup_fraction", "lr_warmup_iters", "lr_warmup_init"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_eps", "clip_grad", "moe_aux_loss_coeff"),
)


def data_facts(config: TuneConfig, dataset: Samples, template: str | None) -> dict[str, Any]:
    """What decides which tokens are learnt when, flags by their names.

    Args:
        config: of the run.
        dataset: to train on.
        template: fingerprint of the template it was written with.
    """
    data = config.data
    return {
        "fingerprint of the data": fingerprint(dataset),
        "samples": dataset.sizes if isinstance(dataset, Blend) else len(dataset),
        "shares": dataset.turns.weights if isinstance(dataset, Blend) else [1],
        "template": template,
        "--seed": config.optimizer.seed,
        "--split": data.split,
        "--shuffle": data.shuffle,
        "--seq-length": data.seq_length,
        "--cut-max-seqlen": data.cut_max_seqlen,
        "--reset-attention-mask": data.reset_attention_mask,
        "--reset-position-ids": data.reset_position_ids,
        "--loss-reduction": config.optimizer.loss_reduction,
    }


def optimizer_facts(config: TuneConfig) -> dict[str, Any]:
    """What decides how far a step goes, flags by their names; how many steps there are is none of it."""
    return {f"--{name.replace('_', '-')}": getattr(config.optimizer, name) for name in _RATES}


def facts_of_run(config: TuneConfig, data: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint's manifest keeps of ``config`` and of `data_facts`, for `refuse_another_run`."""
    return {KEY: data, OPTIMIZED: optimizer_facts(config)}


def fingerprint(dataset: Samples) -> str:
    """Of the lengths of all samples, and of all that some of them hold, from the first to the last."""
    digest = hashlib.sha256(np.ascontiguousarray(dataset.lengths, np.int64).tobytes())
    for number in sorted(set(np.linspace(0, len(dataset) - 1, _LOOKED_AT, dtype=np.int64).tolist())):
        sample = dataset[number]
        for column in (sample.input_ids, sample.labels, sample.segments, sample.loss_weights):
            if column is not None:
                digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:16]


def refuse_another_run(folder: Path, config: TuneConfig, data: Mapping[str, Any]) -> None:
    """Do nothing if a checkpoint is of a run with these data and rates, or the flags allow others.

    Raises:
        UserError: as `refuse_other_data`, `refuse_other_rates`.
    """
    run, manifest = config.run, megatron.read_manifest(folder)
    if run.check_data:
        refuse_other_data(folder, manifest, data)
    if run.load_optim and not run.override_opt_param_scheduler:
        refuse_other_rates(folder, manifest, optimizer_facts(config))


def refuse_other_data(folder: Path, manifest: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Do nothing if a checkpoint was trained on what a run would go on with, or does not say on what.

    Raises:
        UserError: with what differs, then and now.
    """
    different = _different(manifest, KEY, now)
    if different:
        raise UserError(
            f"{folder} was trained on other data, or in another order: {different}; give what it was trained"
            " with, --finetune to begin anew from its weights, or --no-check-data to go on all the same"
        )


def refuse_other_rates(folder: Path, manifest: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """The same for `optimizer_facts`.

    Raises:
        UserError: with what differs, then and now.
    """
    different = _different(manifest, OPTIMIZED, now)
    if different:
        raise UserError(
            f"{folder} was trained with other flags: {different}; give those of then, or --override-opt-param-scheduler"
            " to go on with these"
        )


def _different(manifest: Mapping[str, Any] | None, key: str, now: Mapping[str, Any]) -> str:
    then = (manifest or {}).get(key, {})
    return ", ".join(f"{name} {then[name]} -> {now[name]}" for name in now if name in then and then[name] != now[name])
