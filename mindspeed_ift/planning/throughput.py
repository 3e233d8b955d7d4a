"""The work of a step and a layout in, the time of a step out: exact operations, and an estimate of what a layout costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.planning.memory import Case
from mindspeed_ift.planning.operations import step_operations

TENSOR, CONTEXT, EXPERT, BETWEEN_MACHINES = 0.04, 0.03, 0.05, 1.0
"""Share of a step that each doubling of these degrees adds for communication, within a machine; and what tensor parallel
over several machines adds. Rough figures of dense models on machines of eight, not measured here."""


@dataclass(frozen=True)
class Work:
    """The rows of a run.

    Attributes:
        rows: samples, or packed rows, of an epoch; None: not known.
        longest: tokens of the longest, pads included.
        real_tokens: mean of a row, without pads.
        learnt_tokens: mean of a row.
        squared_lengths: mean of a row: sum over its samples of the squared length.
        origin: where these come from, for people.
    """

    rows: int | None
    longest: int
    real_tokens: float
    learnt_tokens: float
    squared_lengths: float
    origin: str


def operations_of_step(architecture: Architecture, work: Work, rows: int, *, adapters: bool) -> float:
    """Operations that a step of so many rows cannot do without, as the run's MFU counts them."""
    return rows * step_operations(
        architecture,
        real_tokens=work.real_tokens,
        learnt_tokens=work.learnt_tokens,
        squared_lengths=work.squared_lengths,
        adapters=adapters,
    )


def seconds_of_step(operations: float, *, peak: float, mfu: float, devices: int) -> float:
    """Seconds at a share ``mfu`` of the peak operations a second of each device."""
    return operations / (peak * mfu * devices)


def cost(case: Case, devices_per_node: int) -> float:
    """How many times longer a step takes than on devices that do not wait, talk or compute again: an estimate.

    Recomputation adds the forward pass of what is recomputed, a third of its operations; the pipeline adds its bubble
    (Narayanan et al. 2021), (P - 1) / (micro-batches x chunks); degrees add `TENSOR` and its like for each doubling.
    """
    layout, flags = case.layout, case.config.optimizer
    layers = case.architecture.num_layers
    again = 0.0
    if flags.recompute_granularity == "full":
        stages = case.last_stage + 1
        number = flags.recompute_num_layers or 1
        again = 1 / 3 if flags.recompute_method == "uniform" else min(1.0, number * stages / layers) / 3
    elif flags.recompute_granularity == "selective":
        again = _attention_share(case) / 3
    bubble = (layout.pipeline - 1) / (case.micro_batches * layout.chunks(layers))
    talk = TENSOR * math.log2(layout.tensor) + CONTEXT * math.log2(layout.context) + EXPERT * math.log2(layout.expert)
    if layout.tensor > devices_per_node:
        talk += BETWEEN_MACHINES
    return (1 + again) * (1 + bubble) * (1 + talk)


def _attention_share(case: Case) -> float:
    counts = {"real_tokens": case.row, "learnt_tokens": 0, "adapters": case.config.lora.active}
    whole, without = (
        step_operations(case.architecture, squared_lengths=squares, **counts) for squares in (case.row**2, 0)
    )
    return 1 - without / whole
