"""A training command line in, what a plan reckons with out: the model, and the rows of a step, of the data or by flags."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.layout import noop_layers
from mindspeed_ift.config.plan import PlanConfig
from mindspeed_ift.config.resolve import resolve_architecture
from mindspeed_ift.data.batch import round_up
from mindspeed_ift.planning.throughput import Work
from mindspeed_ift.training.plan import Plan, plan
from mindspeed_ift.training.sources import find_sources, loaded_architecture

_LOOKED_AT = 512
"""Micro-batches whose labels and boundaries are read; their mean stands for all."""

_VOCABULARY = 151_936
"""Of Qwen3, for a model that is spelled out without one."""


@dataclass(frozen=True)
class Workload:
    """What a plan reckons with.

    Attributes:
        config: the command line, with steps, and without weights that are not here.
        architecture: of the model.
        origin: where it comes from.
        work: the rows.
    """

    config: PlanConfig
    architecture: Architecture
    origin: str
    work: Work


def workload(config: PlanConfig, devices: int) -> Workload:
    """Look at the data if they are named, else believe the flags.

    Without ``--train-iters`` there are as many steps as an epoch has, or one.

    Raises:
        UserError: data, model and flags do not go together.
    """
    config = _without_missing_weights(config)
    steps = config.optimizer.train_iters
    if not config.data.data_path:
        named = replace(config, data=replace(config.data, data_path=("none",), valid_data_path=()))
        named = _with_steps(named, steps or 1)
        loaded = loaded_architecture(named, find_sources(named))
        architecture, origin = resolve_architecture(named.model, loaded, _VOCABULARY, len(noop_layers(named.layout)))
        return Workload(named, architecture, origin, _believed(named))
    planned = plan(_with_steps(config, steps or 1 + config.optimizer.lr_warmup_iters), devices)
    epoch = -(-len(planned.train) // planned.rows_of_a_step)
    return Workload(
        _with_steps(config, steps or epoch),
        planned.architecture,
        planned.architecture_origin,
        _looked_at(planned),
    )


def _with_steps(config: PlanConfig, steps: int) -> PlanConfig:
    # A warm-up that is longer than the steps that are reckoned is none of the plan's business.
    optimizer = replace(config.optimizer, train_iters=max(steps, 1), lr_warmup_iters=0)
    return replace(config, optimizer=optimizer)


def _without_missing_weights(config: PlanConfig) -> PlanConfig:
    """Weights need not be on the machine on which a run is planned, if a preset or --hf-cfg-dir names the model."""
    run, lora = config.run, config.lora
    missing = [path for path in (run.load, lora.lora_load) if path is not None and not path.exists()]
    if not missing or (config.model.preset is None and config.model.hf_cfg_dir is None):
        return config
    return replace(
        config,
        run=replace(run, load=None, enable_hf2mg_convert=False, finetune=False),
        lora=replace(lora, lora_load=None, lora_ckpt_filter=False),
    )


def _believed(config: PlanConfig) -> Work:
    data, flags = config.data, config.plan
    row, sample = float(data.seq_length), float(flags.sample_length or data.seq_length)
    packed = data.reset_attention_mask
    real = row if packed else sample
    return Work(
        rows=None,
        longest=data.seq_length,
        real_tokens=real,
        learnt_tokens=real * flags.learnt_share,
        squared_lengths=real * sample,
        origin=f"flags: {'packed rows of samples' if packed else 'samples'} of {sample:,.0f} tokens",
    )


def _looked_at(planned: Plan) -> Work:
    flags, lengths = planned.config, planned.dataset.lengths[planned.train.start : planned.train.stop]
    longest = min(int(lengths.max()), flags.data.seq_length)
    if flags.data.pad_to_seq_lengths:
        longest = flags.data.seq_length
    longest = round_up(longest, flags.data.pad_to_multiple_of)
    samples = planned.training_samples(data_rank=0, shuffle=False)
    places = np.unique(np.linspace(0, len(planned.train) - 1, _LOOKED_AT).astype(int))
    batches = [samples.take(int(place), 1)[0] for place in places]
    rows = sum(len(batch.tokens) for batch in batches)
    return Work(
        rows=len(planned.train),
        longest=longest,
        real_tokens=sum(batch.real_tokens for batch in batches) / rows,
        learnt_tokens=sum(batch.learnt_tokens for batch in batches) / rows,
        squared_lengths=sum(batch.squared_lengths for batch in batches) / rows,
        origin=f"{planned.dataset.prefix}: {len(batches):,} micro-batches of {len(planned.train):,} rows looked at",
    )
