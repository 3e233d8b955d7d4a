"""Flags in, a Plan out: everything a run decides and checks before its processes talk to each other."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from mindspeed_ift.checkpoint.disk import require_folder
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.blending import named_datasets
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout, layout_of
from mindspeed_ift.config.resolve import resolve_architecture
from mindspeed_ift.config.rules import check_flags, check_layout, num_micro_batches
from mindspeed_ift.config.tuning import TrainingDataFlags, TuneConfig
from mindspeed_ift.data.balanced_order import BalancedOrder, Dealing
from mindspeed_ift.data.batch import Packed, SequenceMode
from mindspeed_ift.data.blending import Blend
from mindspeed_ift.data.costs import attention_costs
from mindspeed_ift.data.dataset import Samples
from mindspeed_ift.data.micro_batches import MicroBatches, Order
from mindspeed_ift.data.order import SampleOrder, split_ranges
from mindspeed_ift.data.overlong import Overlong, count_overlong
from mindspeed_ift.data.packed_view import PackedView
from mindspeed_ift.training.continuing import data_facts, refuse_another_run
from mindspeed_ift.training.datasets import (
    Opened,
    Selection,
    for_evaluation,
    open_training,
    open_validation,
    select,
)
from mindspeed_ift.training.sources import Sources, find_sources, loaded_architecture
from mindspeed_ift.training.trackers import require_packages


@dataclass(frozen=True)
class Plan:
    """All that is decided before the first process talks to another.

    Attributes:
        config: the flags.
        layout: degrees of parallelism.
        architecture: of the model.
        architecture_origin: where it came from.
        dataset: the samples to train on; of several --data-path a `Blend`.
        mode: how they become batches.
        valid_dataset: the samples to evaluate on: those of --valid-data-path, else a share of ``dataset``.
        valid_mode: how these become batches.
        train: range of training samples.
        valid: range of validation samples, of ``valid_dataset``; of a `Blend` the first so many in its order.
        cut_samples: training samples that are longer than ``--seq-length`` and will be cut.
        micro_batches: of one step and replica.
        sources: whose weights are taken, and whose training is continued.
        token_facts: vocabulary, pad and eod of the dataset's tokenizer, its template.
    """

    config: TuneConfig
    layout: Layout
    architecture: Architecture
    architecture_origin: str
    dataset: Samples
    mode: SequenceMode
    valid_dataset: Samples
    valid_mode: SequenceMode
    train: range
    valid: range
    cut_samples: int
    micro_batches: int
    sources: Sources
    token_facts: dict[str, Any]

    def training_samples(
        self, data_rank: int, shuffle: bool, consumed: int = 0, dealing: Dealing | None = None
    ) -> MicroBatches:
        """The micro-batches that one data parallel rank trains on.

        Args:
            data_rank: which.
            shuffle: False takes the samples as they stand.
            consumed: samples taken before the run goes on.
            dealing: of the packed rows of the epoch in which it goes on, if they were balanced.

        Raises:
            UserError: samples are too long and may not be cut.
        """
        order = self._order(shuffle, consumed, dealing)
        return self._micro_batches(self.dataset, self.train, self.mode, order, data_rank)

    def validation_samples(self, data_rank: int) -> MicroBatches:
        """The micro-batches that one data parallel rank evaluates on, in the order of the dataset; of several in that
        of their shares.

        Raises:
            UserError: samples are too long and may not be cut.
        """
        dataset, seed, taken = self.valid_dataset, self.config.optimizer.seed, self.valid
        if isinstance(dataset, Blend):
            order: Order = dataset.order(seed, shuffle=False)
            taken = range(len(dataset))
        else:
            order = SampleOrder(len(taken), seed, shuffle=False)
        return self._micro_batches(dataset, taken, self.valid_mode, order, data_rank)

    def _micro_batches(
        self,
        dataset: Samples,
        sample_range: range,
        mode: SequenceMode,
        order: Order,
        data_rank: int,
    ) -> MicroBatches:
        data = self.config.data
        overlong = Overlong.CUT_END if data.cut_max_seqlen else Overlong.CUT_TURNS
        return MicroBatches(
            dataset=dataset,
            sample_range=sample_range,
            order=order,
            mode=mode,
            micro_batch_size=self.config.optimizer.micro_batch_size,
            data_rank=data_rank,
            data_size=self.layout.data,
            overlong=overlong if data.cut_token else Overlong.REFUSE,
        )

    def _order(self, shuffle: bool, consumed: int, dealing: Dealing | None) -> Order:
        seed, balance = self.config.optimizer.seed, self.config.data.balance_packs
        if isinstance(self.dataset, Blend):
            return self.dataset.order(seed, shuffle)
        # Rows that were balanced stay so until the epoch ends, or some would come twice and others not at all.
        goes_on = dealing is not None and consumed % len(self.train) != 0
        if not (shuffle and isinstance(self.mode, Packed) and (balance or goes_on)):
            return SampleOrder(len(self.train), seed, shuffle)
        costs = attention_costs(self.dataset, self.mode.boundaries, self.train)
        sizes = (self.layout.data, self.config.optimizer.micro_batch_size, self.micro_batches) if balance else ()
        return BalancedOrder(costs, seed, *sizes, consumed=consumed, begun=dealing)

    def describe_balance(self, order: Order) -> str | None:
        """What --balance-packs comes to, a line; None without it."""
        if not (self.config.data.balance_packs and isinstance(order, BalancedOrder)):
            return None
        packs = self.dataset.index.rules.algorithm if isinstance(self.dataset, PackedView) else None
        packs = packs or (self.dataset.manifest or {}).get("packing_algorithm")
        return f"data: --balance-packs: {order.describe(can_be_packed_anew=packs != 'balanced')}"

    @cached_property
    def data_facts(self) -> dict[str, Any]:
        """See `continuing.data_facts`; a checkpoint keeps them."""
        return data_facts(self.config, self.dataset, self.token_facts["template_sha256"])

    def describe(self) -> str:
        """The lines a run begins with."""
        lines = [
            describe_architecture(self.architecture, self.architecture_origin),
            describe_layout(self.layout, self.micro_batches),
        ]
        for one, taken, share in self._shares(self.dataset, self.train):
            epochs = share * self.config.optimizer.train_iters * self.rows_of_a_step / len(taken)
            told = f", share {share:.4g}" if isinstance(self.dataset, Blend) else ""
            lines.append(
                f"data: {one.prefix}: {len(taken):,} of {len(one):,} samples to train on{told}, {epochs:.2f} epochs"
            )
            if isinstance(one, PackedView):
                lines.append(f"data: {one.index.describe()}")
            elif self.config.data.pack:
                lines.append(f"data: {one.prefix} is packed already: --pack changes nothing")
        if len(self.valid):
            lines.append(f"data: {self.valid_dataset.prefix}: {len(self.valid):,} samples to evaluate on")
        if self.cut_samples:
            how = "at the end (--cut-max-seqlen)" if self.config.data.cut_max_seqlen else "turn by turn"
            lines.append(
                f"data: {self.cut_samples:,} samples are longer than --seq-length {self.config.data.seq_length} and "
                f"are cut {how}; --no-cut-token refuses them"
            )
        lines += _notices_of_packing(self.config.data, self.dataset)
        notice = self.token_facts["certificate_notice"]
        return "\n".join([*lines, *([notice] if notice else []), *self.sources.notices])

    def describe_consumed(self, consumed: int) -> list[str]:
        """How much of each of several datasets so many samples were: a line each; none for a single dataset."""
        if not isinstance(self.dataset, Blend):
            return []
        counts = self.dataset.turns.counts(consumed)
        return [
            f"data: {one.prefix}: {count:,} samples taken, {count / len(taken):.2f} epochs"
            for (one, taken, _), count in zip(self._shares(self.dataset, self.train), counts, strict=True)
        ]

    @property
    def datasets(self) -> list[dict[str, Any]]:
        """The datasets trained on, as JSON: what else than the seed decides which sample comes when."""
        return [
            {"data_path": one.prefix, "samples": [taken.start, taken.stop], "share": share}
            for one, taken, share in self._shares(self.dataset, self.train)
        ]

    @staticmethod
    def _shares(dataset: Samples, taken: range) -> list[tuple[Samples, range, float]]:
        """Each dataset, what is taken of it, and its share."""
        if not isinstance(dataset, Blend):
            return [(dataset, taken, 1.0)]
        parts = zip(dataset.parts, dataset.turns.shares(), strict=True)
        return [(part.samples, part.taken, share) for part, share in parts]

    @property
    def rows_of_a_step(self) -> int:
        """Samples (or packed rows) of one optimizer step: the global batch."""
        return self.micro_batches * self.config.optimizer.micro_batch_size * self.layout.data


def plan(config: TuneConfig, world_size: int) -> Plan:
    """Check everything that can be checked without peers, before any output is touched.

    Raises:
        UserError: flags, data, model or checkpoint do not go together.
    """
    check_flags(config)
    require_packages(config.tracking)
    layout = layout_of(config.layout, world_size)
    if config.run.save is not None:
        require_folder(config.run.save, "--save")
    opened, facts = open_training(config, layout)
    sources = find_sources(config)
    architecture, origin = resolve_architecture(
        config.model, loaded_architecture(config, sources), facts["vocab_size"], len(layout.noop_layers)
    )
    check_layout(config, architecture, layout)
    train, valid = _selections(config, layout, opened)
    for selection in (train, valid) if config.data.valid_data_path else (train,):
        selection.samples.check_fits(architecture.vocab_size)
    to_evaluate = range(valid.samples.once()) if isinstance(valid.samples, Blend) else valid.taken
    _check_evaluation(config, len(to_evaluate))
    planned = Plan(
        config=config,
        layout=layout,
        architecture=architecture,
        architecture_origin=origin,
        dataset=train.samples,
        mode=train.mode,
        valid_dataset=valid.samples,
        valid_mode=valid.mode,
        train=train.taken,
        valid=to_evaluate,
        cut_samples=count_overlong(train.samples, train.taken, config.data.seq_length),
        micro_batches=num_micro_batches(config, layout),
        sources=sources,
        token_facts=facts,
    )
    planned.training_samples(data_rank=0, shuffle=False)  # refuses samples that neither fit nor may be cut
    if len(to_evaluate):
        planned.validation_samples(data_rank=0)
    if sources.resume is not None:
        refuse_another_run(sources.resume, config, planned.data_facts)
    return planned


def _selections(config: TuneConfig, layout: Layout, opened: list[Opened]) -> tuple[Selection, Selection]:
    """What is trained on, and what is evaluated on.

    Raises:
        UserError: a dataset has nothing to train on, or there are two sources of validation data.
    """
    data = config.data
    splits = [split_ranges(len(one.samples), data.split) for one in opened]
    for one, (taken, *_) in zip(opened, splits, strict=True):
        if not len(taken):
            raise UserError(
                f"--split {data.split} leaves no training sample of {len(one.samples)} of {one.samples.prefix}; raise the"
                " first share"
            )
    _, weights = named_datasets("--data-path", data.data_path)
    train = select(opened, weights, [taken for taken, *_ in splits])
    shares = [taken for _, taken, _ in splits]
    if not data.valid_data_path:
        valid = select(opened, weights, shares)
        return train, replace(valid, mode=for_evaluation(valid.mode))
    if any(shares):
        raise UserError(
            f"--valid-data-path and the validation share of --split {data.split} exclude each other; give "
            "--split 100,0,0"
        )
    to_evaluate = open_validation(config, layout, opened[0])
    _, weights = named_datasets("--valid-data-path", data.valid_data_path)
    return train, select(to_evaluate, weights, [range(len(one.samples)) for one in to_evaluate])


def _check_evaluation(config: TuneConfig, valid_samples: int) -> None:
    """Refuse what follows from evaluations where there are none."""
    run = config.run
    for flag, given in (("--early-stopping-patience", run.early_stopping_patience), ("--save-best", run.save_best)):
        if given and not valid_samples:
            raise UserError(f"{flag} needs evaluations: give --valid-data-path, or --split a second share")
        if given and not run.eval_iters:
            raise UserError(f"{flag} needs evaluations, which --eval-iters 0 turns off; raise it")


def describe_architecture(architecture: Architecture, origin: str) -> str:
    """A line for the log."""
    sizes = ", ".join(f"{name} {value}" for name, value in asdict(architecture).items())
    return f"architecture (from {origin}): {sizes}"


def _notices_of_packing(data: TrainingDataFlags, dataset: Samples) -> list[str]:
    """What is easily forgotten where rows hold several samples."""
    if not dataset.is_packed:
        return []
    if not data.reset_attention_mask:
        return ["notice: the samples of a packed row see each other: --reset-attention-mask is not given"]
    if not data.reset_position_ids:
        return [
            f"notice: positions go on through a packed row, up to {data.seq_length - 1}: --reset-position-ids is not"
            " given; a conversation that is served begins at 0"
        ]
    return []


def describe_layout(layout: Layout, micro_batches: int) -> str:
    """A line for the log."""
    split = ", sequence parallel" if layout.sequence_parallel else ""
    if layout.expert > 1:
        split += f", experts {layout.expert} x tensor {layout.tensor_of_experts}"
    return (
        f"layout: {layout.world} devices = tensor {layout.tensor} x pipeline {layout.pipeline} x context {layout.context}"
        f" x data {layout.data}"
        f"{split}; {micro_batches} micro-batches a step"
    )
