"""``mindspeed-ift verify-packing`` / ``tools/verify_packing.py``: a training line's packed rows against one by one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mindspeed_ift.config.accepted import ACCEPTED
from mindspeed_ift.config.flags import parse_with_origins
from mindspeed_ift.config.verify_packing import VerifyPackingConfig

if TYPE_CHECKING:
    from mindspeed_ift.verify.packing import Report


def main(argv: list[str]) -> int:
    """Check, print the table and a line for each notice; 1 if a claim does not hold."""
    parsed = parse_with_origins(
        VerifyPackingConfig,
        argv,
        program="verify-packing",
        description="Check a training command line: packed rows against their samples one by one, on a tiny model.",
        accepted=ACCEPTED,
    )
    from mindspeed_ift.config.layout import world_size
    from mindspeed_ift.verify.packing import verify_packing

    report = verify_packing(parsed.config, world_size())
    if os.environ.get("RANK", "0") == "0":
        _print(report, " ".join(parsed.config.data.data_path))
    return 0 if report.holds else 1


def _print(report: Report, prefix: str) -> None:
    from rich.table import Table

    from mindspeed_ift.cli.console import Console

    console = Console(width=200)
    table = Table(title=prefix, title_justify="left")
    for column in ("claim", "dtype", "examined", "differs", "may", "where", "result"):
        table.add_column(column)
    for check in report.checks:
        worst = f"{check.worst:.1e}" if check.worst else "0"
        bound = f"{check.tolerance:.0e}" if check.tolerance else "0"
        dtype = str(check.dtype).removeprefix("torch.")
        table.add_row(check.name, dtype, check.examined, worst, bound, check.where, "holds" if check.holds else "FAILS")
    console.print(table)
    for notice in report.notices:
        console.print(f"notice: {notice}", markup=False, soft_wrap=True)
    failed = sum(not check.holds for check in report.checks)
    told = (
        f"{failed} of {len(report.checks)} claims do not hold" if failed else "packed rows teach what their samples do"
    )
    console.print(told)
