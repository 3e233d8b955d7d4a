"""All of a plan in one value: memory by part and rank, time, and the best layouts; as plain values for JSON too."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.plan import PlanConfig
from mindspeed_ift.devices.peaks import peak_operations
from mindspeed_ift.planning.memory import Case, Memory, memory_of_ranks
from mindspeed_ift.planning.parameters import model_parameters
from mindspeed_ift.planning.search import Candidate, best, candidates, make_case
from mindspeed_ift.planning.throughput import Work, cost, operations_of_step, seconds_of_step

GIB = 2**30
_SET_ASIDE_LEAST, _SET_ASIDE_SHARE = 1.5 * GIB, 0.05


@dataclass(frozen=True)
class Report:
    """A plan.

    Attributes:
        case: the run as its flags describe it.
        work: its rows.
        parameters: of the whole model, and how many of them a token meets.
        memory: of each pipeline rank's device.
        device_memory: bytes of a device.
        steps: optimizer steps.
        operations: of a step.
        step_seconds: at the given share of the peak; None: the peak is not known.
        cost: of the given layout; see `throughput.cost`.
        best: layouts of as many devices that fit.
        smallest: the layout that needs least, where none fits.
    """

    case: Case
    work: Work
    parameters: tuple[int, int]
    memory: list[Memory]
    device_memory: float
    steps: int
    operations: float
    step_seconds: float | None
    cost: float
    best: list[Candidate]
    smallest: Candidate | None

    @property
    def set_aside(self) -> float:
        """Bytes for the device's context, communication and what is too scattered to be used."""
        return set_aside(self.device_memory)

    @property
    def needed(self) -> float:
        """Bytes of the fullest device with what is set aside."""
        return max(memory.total for memory in self.memory) + self.set_aside

    @property
    def fits(self) -> bool:
        """Whether the fullest device does."""
        return self.needed <= self.device_memory

    def seconds(self, other: Candidate) -> float | None:
        """Of a step in another layout, from that of this one."""
        return None if self.step_seconds is None else self.step_seconds * other.cost / self.cost

    def plain(self) -> dict[str, Any]:
        """For JSON: bytes, seconds, operations."""
        return {
            "architecture": asdict(self.case.architecture),
            "parameters": self.parameters[0],
            "active_parameters": self.parameters[1],
            "layout": {**asdict(self.case.layout), "world": self.case.layout.world},
            "work": asdict(self.work),
            "row_tokens": self.case.row,
            "memory_by_pipeline_rank": [{**asdict(one), "total": one.total} for one in self.memory],
            "set_aside": self.set_aside,
            "device_memory": self.device_memory,
            "fits": self.fits,
            "steps": self.steps,
            "operations_of_a_step": self.operations,
            "seconds_of_a_step": self.step_seconds,
            "best": [
                {"flags": one.flags, "memory": one.memory.total, "seconds_of_a_step": self.seconds(one)}
                for one in self.best
            ],
        }


def set_aside(device_memory: float) -> float:
    """Bytes of a device that a run cannot count on."""
    return max(_SET_ASIDE_LEAST, _SET_ASIDE_SHARE * device_memory)


def reckon(config: PlanConfig, architecture: Architecture, work: Work, devices: int) -> Report:
    """The plan of a run.

    Args:
        config: its flags; with the number of steps.
        architecture: of the model.
        work: its rows.
        devices: how many.

    Raises:
        UserError: flags, model and devices do not go together.
    """
    flags = config.plan
    case = make_case(config, architecture, devices, work.longest)
    operations = operations_of_step(architecture, work, case.rows_of_a_step, adapters=config.lora.active)
    peak = flags.peak_tflops * 1e12 if flags.peak_tflops else peak_operations(flags.device_name or "")
    seconds = None if peak is None else seconds_of_step(operations, peak=peak, mfu=flags.mfu, devices=devices)
    memory = memory_of_ranks(case)
    device_memory = flags.device_memory_gib * GIB
    found: list[Candidate] = []
    if flags.best:
        same_rows = case.with_global_batch(case.rows_of_a_step).config
        found = candidates(same_rows, architecture, devices, work.longest, flags.devices_per_node)
    chosen = best(found, device_memory - set_aside(device_memory), flags.best)
    assert config.optimizer.train_iters is not None
    return Report(
        case=case,
        work=work,
        parameters=model_parameters(architecture),
        memory=memory,
        device_memory=device_memory,
        steps=config.optimizer.train_iters,
        operations=operations,
        step_seconds=seconds,
        cost=cost(case, flags.devices_per_node),
        best=chosen,
        smallest=None if chosen or not found else min(found, key=lambda one: one.memory.total),
    )
