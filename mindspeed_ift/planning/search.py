"""A run and a number of devices in, the layouts out that keep the rules, fit into memory and are likely the fastest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import layout_of
from mindspeed_ift.config.rules import check_flags, check_layout, num_micro_batches
from mindspeed_ift.config.tuning import OptimizerFlags, TuneConfig
from mindspeed_ift.planning.memory import Case, Memory, memory_of_ranks
from mindspeed_ift.planning.throughput import cost

_MICRO_BATCHES = (1, 2, 4)
_RECOMPUTE: tuple[tuple[str | None, str | None, int | None], ...] = (
    (None, None, None),
    ("selective", None, None),
    ("full", "uniform", 1),
)


@dataclass(frozen=True)
class Candidate:
    """A layout that keeps the rules.

    Attributes:
        case: what its memory was asked of.
        memory: of its fullest device.
        cost: of a step; see `throughput.cost`.
    """

    case: Case
    memory: Memory
    cost: float

    @property
    def flags(self) -> str:
        """To be pasted in the place of those that a line has."""
        layout, optimizer = self.case.config.layout, self.case.config.optimizer
        words = [f"--tensor-model-parallel-size {layout.tensor_model_parallel_size}"]
        words += ["--sequence-parallel"] if layout.sequence_parallel else []
        words += [f"--pipeline-model-parallel-size {layout.pipeline_model_parallel_size}"]
        words += [f"--context-parallel-size {layout.context_parallel_size}"]
        if self.case.architecture.num_experts:
            words += [f"--expert-model-parallel-size {layout.expert_model_parallel_size}"]
            words += [f"--expert-tensor-parallel-size {self.case.layout.tensor_of_experts}"]
        words += ["--use-distributed-optimizer", f"--micro-batch-size {optimizer.micro_batch_size}"]
        words += [f"--global-batch-size {optimizer.global_batch_size}"]
        if optimizer.recompute_granularity is not None:
            words += [f"--recompute-granularity {optimizer.recompute_granularity}"]
        if optimizer.recompute_method is not None:
            words += [f"--recompute-method {optimizer.recompute_method}"]
            words += [f"--recompute-num-layers {optimizer.recompute_num_layers}"]
        return " ".join(words)


def make_case(config: TuneConfig, architecture: Architecture, devices: int, longest: int) -> Case:
    """The run on so many devices, its longest row rounded up to what the layout needs.

    Raises:
        UserError: flags, model and devices do not go together.
    """
    check_flags(config)
    layout = layout_of(config.layout, devices)
    check_layout(config, architecture, layout)
    layout.stage_layers(architecture.num_layers)
    row = -(-longest // layout.row_multiple) * layout.row_multiple
    return Case(config, architecture, layout, row, num_micro_batches(config, layout))


def fullest(case: Case) -> Memory:
    """Memory of the device that needs most."""
    return max(memory_of_ranks(case), key=lambda memory: memory.total)


def candidates(
    config: TuneConfig, architecture: Architecture, devices: int, longest: int, devices_per_node: int
) -> list[Candidate]:
    """Every layout of so many devices that keeps the rules, with some micro-batches and recomputation; cheapest first.

    All have the distributed optimizer, sequence parallel where they are tensor parallel, and the global batch of ``config``.
    Of those that cost alike, the one that needs less memory comes first.
    """
    found = []
    for changed in _variants(config, architecture, devices):
        try:
            case = make_case(changed, architecture, devices, longest)
        except UserError:
            continue
        found.append(Candidate(case, fullest(case), cost(case, devices_per_node)))
    return sorted(found, key=lambda one: (round(one.cost, 6), one.memory.total))


def best(found: list[Candidate], room: float, number: int) -> list[Candidate]:
    """The cheapest of those that need no more than ``room`` bytes, one for each set of degrees."""
    chosen: dict[tuple[int, ...], Candidate] = {}
    for one in found:
        layout = one.case.layout
        degrees = (layout.tensor, layout.pipeline, layout.context, layout.expert)
        if one.memory.total <= room and degrees not in chosen:
            chosen[degrees] = one
    return list(chosen.values())[:number]


def _variants(config: TuneConfig, architecture: Architecture, devices: int) -> Iterator[TuneConfig]:
    # Each expert's matrices are split as all others, or whole on a device.
    experts = [(1, False)]
    if architecture.num_experts:
        experts = [(expert, whole) for expert in _powers(architecture.num_experts) for whole in (False, True)]
    for tensor in _powers(devices):
        for pipeline in [one for one in range(1, devices // tensor + 1) if devices % (tensor * one) == 0]:
            if architecture.num_layers % pipeline:
                continue
            for context in _powers(devices // tensor // pipeline):
                for expert, whole in experts:
                    if whole and tensor == 1:
                        continue
                    layout = replace(
                        config.layout,
                        tensor_model_parallel_size=tensor,
                        sequence_parallel=tensor > 1,
                        pipeline_model_parallel_size=pipeline,
                        context_parallel_size=context,
                        expert_model_parallel_size=expert,
                        expert_tensor_parallel_size=1 if whole else None,
                        num_layers_per_virtual_pipeline_stage=None,
                        num_layer_list=None,
                        decoder_first_pipeline_num_layers=None,
                        decoder_last_pipeline_num_layers=None,
                        noop_layers=None,
                        use_distributed_optimizer=True,
                    )
                    for optimizer in _optimizers(config.optimizer):
                        yield replace(config, layout=layout, optimizer=optimizer)


def _optimizers(flags: OptimizerFlags) -> Iterator[OptimizerFlags]:
    for rows in _MICRO_BATCHES:
        for granularity, method, number in _RECOMPUTE:
            yield replace(
                flags,
                micro_batch_size=rows,
                recompute_granularity=granularity,  # type: ignore[arg-type]
                recompute_method=method,  # type: ignore[arg-type]
                recompute_num_layers=number,
            )


def _powers(most: int) -> list[int]:
    return [1 << power for power in range(most.bit_length()) if 1 << power <= most]
