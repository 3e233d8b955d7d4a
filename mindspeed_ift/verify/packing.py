"""A training command line in, proof out that its packed rows teach what their samples teach one by one.

A tiny random model of the same kind (heads, groups, norms, tied or not, adapters, recompute) computes some rows of the
user's own data through the step of training, in the user's layout where the processes for it were started.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import islice

import torch

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout, layout_of, padded_vocab_size
from mindspeed_ift.config.verify_packing import VerifyPackingConfig
from mindspeed_ift.data.batch import Packed
from mindspeed_ift.data.boundaries import BoundarySource, EndOfDocument, StoredBoundaries, choose_boundaries
from mindspeed_ift.data.sample import Sample
from mindspeed_ift.devices.device import current
from mindspeed_ift.model.build import ModelOptions, Qwen3Model, build_stages
from mindspeed_ift.parallel import groups as process_groups
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.training.plan import Plan, plan
from mindspeed_ift.verify.packed_trial import (
    Trial,
    learns_nothing,
    looks_like_several,
    make_trials,
    sample_ranges,
    shortened,
)
from mindspeed_ift.verify.stages import build_pipeline, worst_of_stages
from mindspeed_ift.verify.trial_model import TrialModel, prepare

_LAYERS = 2
"""Of each stage: with two, what a first layer mixes is seen by a second."""

_WIDTH, _HEAD = 64, 8
"""Hidden size and size of a head of the tiny model; numbers of heads, groups and experts are those of the user's."""


@dataclass(frozen=True)
class Tolerance:
    """What packed and alone may differ by, as a share of the value, or of a tensor's largest."""

    loss: float
    tensor: float


TOLERANCES = {
    torch.float32: Tolerance(loss=1e-5, tensor=1e-3),
    torch.bfloat16: Tolerance(loss=1e-2, tensor=1e-1),
}
"""fp32: sums over the same terms in another order; gradients that nearly cancel show most of it. bf16: 8 bits, rounded
after each operation. A neighbour that is seen moves both by a tenth and more."""


@dataclass
class Check:
    """One claim about the rows.

    Attributes:
        name: the claim.
        dtype: of weights and activations.
        examined: of what.
        tolerance: the largest difference that may be.
        worst: the largest that was found.
        where: it was found.
    """

    name: str
    dtype: torch.dtype
    examined: str
    tolerance: float
    worst: float = 0.0
    where: str = ""

    @property
    def holds(self) -> bool:
        """Whether no difference is over the tolerance."""
        return self.worst <= self.tolerance

    def see(self, difference: float, where: str) -> None:
        """Take note of a difference; what is no number is the largest."""
        if not difference <= self.worst and not math.isnan(self.worst):
            self.worst, self.where = difference, where


@dataclass
class Report:
    """What was found.

    Attributes:
        checks: one a claim and precision.
        notices: what was left out of the computation, and what looks odd in the data.
    """

    checks: list[Check] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every claim does."""
        return all(check.holds for check in self.checks)


def verify_packing(config: VerifyPackingConfig, world_size: int) -> Report:
    """Check the packing of the run that ``config`` describes.

    On one process the stages of a pipeline are built one after another and fed by hand, and tensor and context parallel are
    left out; on as many as the layout needs all of it is as in training.

    Raises:
        UserError: flags or data are none that a run could take, or hold no row of several samples.
    """
    config.check()
    needed = config.layout.model_size
    planned = plan(config, needed if world_size == 1 else world_size)
    layout = _tiny_layout(planned, world_size)
    boundaries = _boundaries(planned)
    report = Report()
    rows = _rows(planned, boundaries, config, report)
    size = min(config.optimizer.micro_batch_size, len(rows))
    mode = planned.mode
    if mode.loss_reduction == "micro-batch":
        mode = replace(mode, loss_reduction="token")
        report.notices.append(
            "--loss-reduction micro-batch weighs a sample by what else is in its micro-batch, so packed it never teaches what"
            " it teaches alone; checked is the mean over tokens"
        )
    trials = make_trials(rows, boundaries, mode, micro_batch_size=size, multiple=layout.row_multiple)
    _notice_data(planned, boundaries, rows, report)
    stages = planned.layout.pipeline * planned.layout.chunks(planned.architecture.num_layers)
    if world_size == 1 and needed > 1:
        emulated = f"its {stages} pipeline stages are fed by hand" if stages > 1 else "it has one stage"
        report.notices.append(
            f"the layout is of {needed} devices and this is one process: {emulated}; tensor and context parallel are left"
            f" out, start it with torchrun --nproc_per_node {needed} to check them too"
        )
    groups = process_groups.start(
        layout,
        current(),
        seed=config.optimizer.seed,
        chunks=layout.chunks(_LAYERS * stages),
        backend=config.run.collective_backend,
        timeout_minutes=config.run.distributed_timeout_minutes,
    )
    try:
        report.checks = _checks(planned, trials, groups, stages)
    finally:
        process_groups.stop(groups)
    return report


def _checks(planned: Plan, trials: list[Trial], groups: Groups, stages: int) -> list[Check]:
    """Of each precision: the step of training, then the stages fed by hand where one process holds several."""
    config, layout = planned.config, groups.layout
    architecture = _tiny(planned.architecture, layout, _LAYERS * stages, len(trials[0].vocabulary))
    checks: list[Check] = []
    for dtype in (torch.float32, torch.bfloat16) if config.optimizer.bf16 else (torch.float32,):
        options = _options(planned, architecture, layout, dtype)
        built = build_stages(architecture, options, groups)
        apart = []
        if stages > 1 and layout.world == 1:
            apart = build_pipeline(architecture, options, groups, stages, current())
        for stage in [*built, *apart]:
            prepare(stage, config.lora, config.optimizer.seed)
        checks += _check(TrialModel(built, config, groups), trials, dtype)
        checks += _check_stages(apart, trials, dtype)
    return checks


def _check(model: TrialModel, trials: list[Trial], dtype: torch.dtype) -> list[Check]:
    samples, bound = sum(len(trial.parts) for trial in trials), TOLERANCES[dtype]
    batches = f"{len(trials)} micro-batches, {model.parameters()} tensors"
    losses = Check("a sample's loss: packed = alone", dtype, f"{samples} samples", bound.loss)
    gradients = Check("gradient of a micro-batch = sum of its samples' alone", dtype, batches, bound.tensor)
    poison = Check("another sample's tokens change: the loss stays", dtype, f"{samples} samples", bound.loss)
    reach = Check("another sample's tokens get no gradient", dtype, f"{samples} samples", 0.0)
    for trial in trials:
        whole = model.run(trial.batch)
        total = {name: torch.zeros_like(gradient) for name, gradient in whole.gradients.items()}
        for part in trial.parts:
            packed, alone = model.run(trial.learning([part])), model.run(trial.alone(part))
            losses.see(abs(packed.loss - alone.loss) / max(abs(alone.loss), 1e-6), part.name)
            reach.see(model.reach(packed, trial.batch, part), part.name)
            for name, gradient in alone.gradients.items():
                total[name] += gradient
            before = model.loss(trial.learning(trial.others(part)))
            poison.see(abs(model.loss(trial.poisoned(part)) - before) / max(abs(before), 1e-6), part.name)
        gradients.see(*model.worst(whole.gradients, total))
    return [losses, gradients, poison, reach]


def _check_stages(stages: list[Qwen3Model], trials: list[Trial], dtype: torch.dtype) -> list[Check]:
    checks = []
    for number, stage in enumerate(stages, 1):
        numbers = stage.layer_numbers
        held = [f"layers {numbers.start + 1}-{numbers.stop}"]
        held = ["embedding", *held] if stage.pre_process else held
        held += ["head"] if stage.post_process else []
        name = f"stage {number} of {len(stages)}: packed = alone, forward and backward"
        checks.append(Check(name, dtype, ", ".join(held), TOLERANCES[dtype].tensor))
    for trial in trials:
        for check, (difference, where) in zip(checks, worst_of_stages(stages, trial, current()), strict=True):
            check.see(difference, where)
    return checks


def _rows(
    planned: Plan, boundaries: BoundarySource, config: VerifyPackingConfig, report: Report
) -> list[tuple[int, Sample]]:
    """The first rows of several samples, cut to what is computed."""
    dataset, wanted = planned.dataset, config.verify
    packed = (number for number in planned.train if len(sample_ranges(dataset[number], boundaries)) > 1)
    numbers = list(islice(packed, wanted.verify_rows))
    if not numbers:
        raise UserError(
            f"--data-path {dataset.prefix} holds one sample a row, so there is no packing to verify; give --pack to pack it"
            " as the run starts, or prepare it with --pack --neat-pack"
        )
    rows = [(number, shortened(dataset[number], boundaries, wanted.verify_tokens)) for number in numbers]
    cut = [number for number, row in rows if len(row) < _real_tokens(dataset[number], boundaries)]
    if cut:
        report.notices.append(
            f"{len(cut)} of {len(rows)} rows are longer than --verify-tokens {wanted.verify_tokens}: the ends of their first"
            " samples are computed, not all of their tokens"
        )
    return rows


def _real_tokens(row: Sample, boundaries: BoundarySource) -> int:
    return sum(stop - start for start, stop in sample_ranges(row, boundaries))


def _boundaries(planned: Plan) -> BoundarySource:
    """As the run tells samples apart, also where it lets them see each other."""
    if isinstance(planned.mode, Packed):
        return planned.mode.boundaries
    facts = planned.token_facts
    try:
        return choose_boundaries(planned.dataset, facts["eod_id"], facts["turn_end_ids"])
    except UserError:
        raise UserError(
            f"dataset {planned.dataset.prefix} does not say where the samples of a row end, and without"
            " --reset-attention-mask they see each other: packed they do not teach what they teach alone; prepare it again"
            " with --pack --neat-pack"
        ) from None


def _notice_data(planned: Plan, boundaries: BoundarySource, rows: list[tuple[int, Sample]], report: Report) -> None:
    """What the rows are made of, and what looks odd in them; whole rows are looked at."""
    notices, data = report.notices, planned.config.data
    if isinstance(boundaries, StoredBoundaries):
        notices.append("boundaries: stored with the rows")
    elif isinstance(boundaries, EndOfDocument):
        ids = " ".join(map(str, boundaries.mark))
        learnt = ", where it is learnt" if boundaries.learnt else ""
        notices.append(f"boundaries: not stored; a sample ends after the token ids {ids}{learnt}")
    samples = [
        (f"row {number} sample {place}", planned.dataset[number].part(slice(start, stop)))
        for number, _ in rows
        for place, (start, stop) in enumerate(sample_ranges(planned.dataset[number], boundaries), 1)
    ]
    several = [name for name, sample in samples if looks_like_several(sample)]
    if several:
        notices.append(
            f"{len(several)} of {len(samples)} samples look like several ({several[0]} repeats its opening): what stands"
            " behind a boundary that is missing sees what stands before it; prepare the data with --pack --neat-pack"
        )
    silent = [name for name, sample in samples if learns_nothing(sample)]
    if silent:
        notices.append(
            f"{len(silent)} of {len(samples)} samples learn nothing ({silent[0]}): are they questions that a boundary parts"
            " from their answers?"
        )
    if not data.reset_attention_mask:
        notices.append("samples of a row see each other: --reset-attention-mask is not given")
    if not data.reset_position_ids:
        longest = max(int(planned.dataset.lengths[number]) for number, _ in rows)
        notices.append(
            f"positions go on through a row, up to {longest}: --reset-position-ids is not given. Rotary positions are"
            " relative, so what is learnt is the same but for rounding; served, a conversation begins at 0"
        )


def _tiny_layout(planned: Plan, world_size: int) -> Layout:
    """The user's degrees with two layers a stage; on one process those that it can be."""
    if world_size == 1:
        return Layout()
    layout = layout_of(planned.config.layout, world_size)
    chunks = layout.chunks(planned.architecture.num_layers)
    equal = replace(layout, layer_list=(), first_layers=None, last_layers=None, noop_layers=())
    return replace(equal, chunk_layers=_LAYERS if chunks > 1 else None)


def _tiny(architecture: Architecture, layout: Layout, layers: int, vocabulary: int) -> Architecture:
    """The same kind of model, narrow; weights so large that what attention mixes weighs as much as what it passes by."""
    width = math.lcm(2 * _WIDTH, layout.tensor)
    dense = tuple(layer for layer in architecture.dense_layers if layer < layers)
    return replace(
        architecture,
        num_layers=layers,
        hidden_size=_WIDTH,
        ffn_hidden_size=width,
        moe_ffn_hidden_size=width if architecture.num_experts else 0,
        dense_layers=dense if len(dense) < layers else (),
        kv_channels=min(_HEAD, architecture.kv_channels),
        vocab_size=vocabulary,
        init_method_std=_WIDTH**-0.5,
    )


def _options(planned: Plan, architecture: Architecture, layout: Layout, dtype: torch.dtype) -> ModelOptions:
    flags, lora = planned.config.optimizer, planned.config.lora
    layers = flags.recompute_num_layers
    return ModelOptions(
        padded_vocab=padded_vocab_size(architecture.vocab_size, 1, layout.tensor),
        dtype=dtype,
        variable_lengths=not planned.config.data.pad_to_seq_lengths,
        recompute=(
            flags.recompute_granularity,
            flags.recompute_method,
            None if layers is None else min(layers, _LAYERS),
        ),
        loss_chunk_size=flags.loss_chunk_size if flags.loss_compute_mode == "chunk" else None,
        # Dropout would draw otherwise for a packed row than for its samples.
        lora=replace(lora, lora_dropout=0.0) if lora.active else None,
    )
