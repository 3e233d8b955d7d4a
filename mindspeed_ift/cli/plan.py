"""``mindspeed-ift plan`` / ``tools/plan.py``: what a training line takes in memory and time, and the best layouts for it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mindspeed_ift.config.accepted import ACCEPTED
from mindspeed_ift.config.flags import parse_with_origins
from mindspeed_ift.config.plan import PlanConfig

if TYPE_CHECKING:
    from mindspeed_ift.cli.console import Console
    from mindspeed_ift.planning.report import Report

_GIB = 2**30
_PARTS = ("weights", "gradients", "optimizer", "activations", "temporary")


def main(argv: list[str]) -> int:
    """Reckon and print; 1 if the given layout does not fit."""
    parsed = parse_with_origins(
        PlanConfig,
        argv,
        program="plan",
        description="Reckon memory and time of a training command line, without an accelerator.",
        accepted=ACCEPTED,
    )
    config: PlanConfig = parsed.config
    config.check()
    from mindspeed_ift.config.layout import world_size
    from mindspeed_ift.planning.report import reckon
    from mindspeed_ift.training.workload import workload

    devices = config.plan.num_devices or max(world_size(), config.layout.model_size)
    found = workload(config, devices)
    report = reckon(found.config, found.architecture, found.work, devices)
    if config.plan.json:
        print(json.dumps(report.plain(), indent=2))
    else:
        _print(report, found.origin, found.config)
    return 0 if report.fits else 1


def _print(report: Report, origin: str, config: PlanConfig) -> None:
    from mindspeed_ift.cli.console import Console

    console = Console()
    case, layout, work = report.case, report.case.layout, report.work
    whole, active = (count / 1e9 for count in report.parameters)
    chosen = f", {active:.2f} billion of them a token's" if active < whole else ""
    console.print(f"model: {whole:.2f} billion parameters{chosen} (from {origin})")
    console.print(
        f"layout: {layout.world} devices = tensor {layout.tensor} x pipeline {layout.pipeline} x context {layout.context} x"
        f" data {layout.data}; {case.micro_batches} micro-batches of {config.optimizer.micro_batch_size} a step"
    )
    console.print(
        f"rows: {work.real_tokens:,.0f} tokens, {work.learnt_tokens:,.0f} learnt, up to {case.row:,} with pads"
        f" ({work.origin})",
        soft_wrap=True,
    )
    _print_memory(console, report)
    _print_time(console, report, config)
    _print_best(console, report, config)


def _print_memory(console: Console, report: Report) -> None:
    from rich.table import Table

    ranks = range(len(report.memory))
    largest = max(ranks, key=lambda rank: report.memory[rank].total)
    shown = sorted({0, largest, len(report.memory) - 1})
    table = Table(title="memory of a device, GiB", title_justify="left")
    table.add_column("part")
    for rank in shown:
        table.add_column(f"pipeline rank {rank}", justify="right")
    for part in _PARTS:
        table.add_row(part, *(f"{getattr(report.memory[rank], part) / _GIB:.2f}" for rank in shown))
    table.add_row("set aside", *(f"{report.set_aside / _GIB:.2f}" for _ in shown), end_section=True)
    totals = (f"{(report.memory[rank].total + report.set_aside) / _GIB:.2f}" for rank in shown)
    table.add_row("together", *totals)
    console.print(table)
    verdict = "fits" if report.fits else "does not fit"
    console.print(
        f"{verdict}: {report.needed / _GIB:.1f} of {report.device_memory / _GIB:.1f} GiB; fullest during:"
        f" {report.memory[largest].moment}"
    )


def _print_time(console: Console, report: Report, config: PlanConfig) -> None:
    steps = f"{report.steps:,} steps"
    if report.work.rows is not None:
        steps += f", {report.steps * report.case.rows_of_a_step / report.work.rows:.2f} epochs"
    work = f"time: {steps} of {report.operations / 1e12:,.0f} TFLOP"
    if report.step_seconds is None:
        console.print(f"{work}; give --device-name or --peak-tflops for seconds")
        return
    hours = report.step_seconds * report.steps / 3600
    console.print(
        f"{work}, {report.step_seconds:.2f} s each at MFU {100 * config.plan.mfu:.0f} %: {hours:,.2f} hours",
        soft_wrap=True,
    )


def _print_best(console: Console, report: Report, config: PlanConfig) -> None:
    if not config.plan.best:
        return
    devices = report.case.layout.world
    if not report.best:
        least = report.smallest
        console.print(f"no layout of {devices} devices fits; more devices, adapters or --optimizer-cpu-offload may")
        if least is not None:
            size = (least.memory.total + report.set_aside) / _GIB
            console.print(f"least memory: {size:.1f} GiB with {least.flags}", soft_wrap=True)
        return
    console.print(f"best layouts of {devices} devices (an estimate: docs/planning.md), fastest first:")
    for number, one in enumerate(report.best, 1):
        seconds = report.seconds(one)
        speed = f"{one.cost / report.cost:.2f} x the time" if seconds is None else f"{seconds:.2f} s a step"
        console.print(
            f"{number}. {(one.memory.total + report.set_aside) / _GIB:.1f} GiB, {speed}: {one.flags}", soft_wrap=True
        )
