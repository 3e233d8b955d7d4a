"""Command ``evaluate`` / ``tools/evaluation.py``: held-out records and benchmarks, of one model or against another."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mindspeed_ift.cli.command import tell
from mindspeed_ift.config.accepted import ASKING_ACCEPTED
from mindspeed_ift.config.describe import describe
from mindspeed_ift.config.evaluation import EvaluateConfig
from mindspeed_ift.config.flags import parse_with_origins

if TYPE_CHECKING:
    from mindspeed_ift.evaluation.comparison import Comparison


def main(argv: list[str]) -> int:
    """Parse, measure, print, write."""
    parsed = parse_with_origins(
        EvaluateConfig,
        argv,
        program="evaluation.py",
        description="Measure a model on held-out records and benchmarks.",
        accepted=ASKING_ACCEPTED,
    )
    config = parsed.config
    config.check()
    if config.dry_run:
        print(describe(parsed))
        return 0
    tell(parsed.ignored)
    from mindspeed_ift.checkpoint.disk import require_folder
    from mindspeed_ift.evaluation.comparison import compare, write_json, write_page

    for flag, path in (("--output", config.output), ("--html", config.html)):
        if path is not None:
            require_folder(path.parent, flag)
            path.parent.mkdir(parents=True, exist_ok=True)
    comparison = compare(config)
    if os.environ.get("RANK", "0") != "0":
        return 0
    _print(comparison)
    if config.output is not None:
        write_json(comparison, config.output)
        print(f"figures and answers: {config.output}")
    if config.html is not None:
        write_page(comparison, config.html)
        print(f"page: {config.html}")
    return 0


def _print(comparison: Comparison) -> None:
    from rich.table import Table
    from rich.text import Text

    from mindspeed_ift.cli.console import Console

    models = comparison.models
    table = Table()
    if comparison.items:
        table.title = f"{len(comparison.items):,} records, {comparison.learnt_tokens:,} learnt tokens"
    table.add_column("")
    for model in models:
        table.add_column(Text(model.name), justify="right")
    for name in models[0].figures:
        table.add_row(name, *(f"{model.figures[name]:.4g}" for model in models))
    Console().print(table)
    for reason, count in comparison.left_out.items():
        print(f"left out: {count:,} records ({reason})")
    if comparison.items and len(models) > 1:
        print(f"the loss of {comparison.better():,} of {len(comparison.items):,} records is lower after")
