"""``mindspeed-ift verify-dataset PREFIX`` / ``tools/verify_dataset.py``: whether an indexed dataset is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.verify import VerifyDatasetConfig
from mindspeed_ift.config.words import first_word_of

if TYPE_CHECKING:
    from mindspeed_ift.verify.report import Report


def main(argv: list[str]) -> int:
    """Check, print the table and a line for each problem; 1 if there is one."""
    argv = first_word_of(argv, "--data-path")
    config = parse(VerifyDatasetConfig, argv, program="verify-dataset", description="Check an indexed dataset.")
    config.check()
    from mindspeed_ift.verify.dataset import verify_dataset

    vocab_size = None
    if config.tokenizer_name_or_path:
        from mindspeed_ift.data.tokenizer import load_tokenizer

        vocab_size = load_tokenizer(config.tokenizer_name_or_path).vocab_size
    report = verify_dataset(config.data_path, vocab_size, config.pack_index)
    print_report(report, config.data_path)
    return 1 if report.problems else 0


def print_report(report: Report, prefix: str) -> None:
    """The table, then a line for each notice and each problem."""
    from rich.table import Table

    from mindspeed_ift.cli.console import Console

    console = Console()
    table = Table(title=prefix, title_justify="left")
    for column in ("what", "found", "result"):
        table.add_column(column)
    for check in report.checks:
        table.add_row(check.name, check.examined, f"{len(check.problems)} wrong" if check.problems else "ok")
    console.print(table)
    for notice in report.notices:
        console.print(f"notice: {notice}", markup=False, soft_wrap=True)
    for problem in report.problems:
        console.print(f"problem: {problem}", markup=False, soft_wrap=True)
