"""Command ``preprocess``: raw records -> indexed dataset."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mindspeed_ift.cli.merge_datasets import merge_and_tell
from mindspeed_ift.config.accepted import PREPARATION_ACCEPTED
from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.describe import describe
from mindspeed_ift.config.flags import Parsed, parse_with_origins

if TYPE_CHECKING:
    from mindspeed_ift.data.preprocess import Summary
    from mindspeed_ift.data.progress import Show, Standing


def main(argv: list[str]) -> int:
    """Prepare the dataset, then print the account of the records and what was written."""
    parsed = parse_with_origins(
        PreprocessConfig,
        argv,
        program="preprocess",
        description="Turn records into an indexed dataset.",
        accepted=PREPARATION_ACCEPTED,
    )
    if parsed.config.dry_run:
        if not parsed.config.merge_group_keys:  # whose own flags are others
            parsed.config.check()
        print(describe(parsed))
        return 0
    for line in parsed.ignored:
        print(line)
    if parsed.config.merge_group_keys:
        return _merge(parsed)
    # No linear algebra here, and the threads of numpy's would keep worker processes from being forked.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # After the flags are understood, so that --help and a misspelt flag answer at once.
    from mindspeed_ift.data.preprocess import preprocess

    if sys.stdout.isatty():
        with _bar() as (report, show):
            summary = preprocess(parsed.config, report, show)
    else:
        summary = preprocess(parsed.config)
    _print_summary(summary)
    return 0


@contextlib.contextmanager
def _bar() -> Iterator[tuple[Callable[[str], None], Show]]:
    """A bar on the terminal: what takes lines above it, and what moves it."""
    from rich.progress import BarColumn, Progress, TextColumn

    progress = Progress(TextColumn("{task.description}"), BarColumn(), transient=True)
    task = progress.add_task("reading", total=None)

    def show(standing: Standing) -> None:
        progress.start()  # not before: its thread would keep worker processes from being forked
        progress.update(task, description=str(standing), completed=standing.part or 0, total=standing.part and 1)

    try:
        yield functools.partial(progress.console.print, markup=False, highlight=False, soft_wrap=True), show
    finally:
        progress.stop()


def _merge(parsed: Parsed) -> int:
    config = parsed.config
    wanted = {"input", "output_prefix", "merge_group_keys"}
    other = sorted(name for name, origin in parsed.origins.items() if origin != "default" and name not in wanted)
    if other:
        flags = ", ".join("--" + name.replace("_", "-") for name in other)
        print(f"notice: --merge-group-keys joins datasets as they are; not used: {flags}")
    return merge_and_tell(config.input, config.output_prefix, config.merge_group_keys)


def _print_summary(summary: Summary) -> None:
    from rich.table import Table

    from mindspeed_ift.cli.console import Console

    console = Console()
    table = Table(title="Records", title_justify="left")
    table.add_column("what")
    table.add_column("records", justify="right")
    table.add_column("first at", overflow="fold")
    for what, count, first in summary.ledger.rows():
        table.add_row(what, f"{count:,}", first)
    console.print(table)
    for notice in summary.notices:
        console.print(f"notice: {notice}", markup=False, soft_wrap=True)
    manifest = summary.manifest
    share = manifest["learnt_tokens"] / max(manifest["tokens"], 1)
    print(
        f"{summary.ledger.read:,} records -> {manifest['samples']:,} documents, {manifest['tokens']:,} tokens,"
        f" {share:.1%} of them learnt, in {summary.seconds:.1f} s"
    )
    for name, file in manifest["files"].items():
        print(f"  {name}  {file['bytes']:,} bytes")
