"""Command ``verify-template``: does a model that is served see what it was trained on? Exit code 1 where not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mindspeed_ift.config.describe import describe
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import parse_with_origins
from mindspeed_ift.config.verify_template import VerifyTemplateConfig

if TYPE_CHECKING:
    from mindspeed_ift.data.certify import Report
    from mindspeed_ift.data.template_comparison import Difference


def main(argv: list[str]) -> int:
    """Compare, show the differences and the account, keep the certificate."""
    parsed = parse_with_origins(
        VerifyTemplateConfig,
        argv,
        program="verify-template",
        description="Compare --prompt-type with the tokenizer's own chat template on records.",
    )
    config: VerifyTemplateConfig = parsed.config
    config.check()
    if config.dry_run:
        print(describe(parsed))
        return 0
    from mindspeed_ift.data.indexed import read_manifest
    from mindspeed_ift.data.template_certificate import add_to_dataset, write_json
    from mindspeed_ift.verify.template import verify_template

    if config.data_path is not None and read_manifest(config.data_path) is None:
        raise UserError(f"--data-path {config.data_path} has no manifest; prepare the data with preprocess")
    if config.output is not None:
        _make_folder(config.output)
    report = verify_template(config)
    _print(report)
    if config.data_path is not None:
        add_to_dataset(report.certificate, config.data_path)
    if config.output is not None:
        write_json(config.output, report.certificate.as_dict())
        print(f"certificate: {config.output}")
    return 0 if report.certificate.holds else 1


def _make_folder(output: Path) -> None:
    """Before the work, so that its result is not lost."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror}); choose another place") from None
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file in it")
    if output.is_file() and not _is_certificate(output):
        raise UserError(f"--output {output} is there and is no certificate; give another name")


def _is_certificate(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(content, dict) and {"verdict", "template_sha256"} <= content.keys()


def _print(report: Report) -> None:
    from rich.table import Table
    from rich.text import Text

    from mindspeed_ift.cli.console import Console
    from mindspeed_ift.data.template_certificate import serving_options

    console = Console()
    decode = report.encoder.tokenizer.decode

    def cell(ids: list[int]) -> Text:
        return Text(" ".join(f"{token} {decode([token])!r}" for token in ids))

    def show(origin: str, found: Difference) -> None:
        console.print(f"{origin}: {found.where}: {found.kind}", markup=False, soft_wrap=True)
        table = Table()
        table.add_column("trained")
        table.add_column("served")
        for trained, served in found.aligned():
            table.add_row(cell(trained), cell(served), style="" if trained == served else "bold red")
        if found.reason:
            table.add_row("", Text(found.reason))
        console.print(table)

    best = report.modes[0]
    best_served = serving_options(best.serve_with)
    for origin, difference in best.examples:
        show(origin, difference)
    table = Table(title="Records", title_justify="left")
    for name in ("chat template served with", "what", "records"):
        table.add_column(name, justify="right" if name == "records" else "left")
    for mode in report.modes:
        table.add_row(serving_options(mode.serve_with), "equal, token for token", f"{mode.equal:,}")
        table.add_row("", "prompts equal, not the answers", f"{mode.prompts_equal - mode.equal:,}")
        for kind, count in mode.differ.most_common():
            table.add_row("", Text(f"differ first in: {kind}"), f"{count:,}")
    for reason, count in report.certificate.left_out.items():
        table.add_row("", Text(f"no sample: {reason}"), f"{count:,}")
    console.print(table)
    name, certificate = report.encoder.template.name, report.certificate
    if certificate.holds:
        print(
            f"equal: served with {best_served}, the model sees what --prompt-type {name} trains it on"
            f" ({certificate.records:,} records)"
        )
    elif certificate.prompts_equal == certificate.records:
        print(
            f"prompts equal: served with {best_served}, the model is asked as --prompt-type {name} trains it, but the"
            f" chat template writes its answers otherwise in {certificate.records - certificate.equal:,} of"
            f" {certificate.records:,} records"
        )
    else:
        print(
            f"differs: the chat template shows the model something else than --prompt-type {name} trains it on, in"
            f" {certificate.records - certificate.equal:,} of {certificate.records:,} records; train with another"
            " template (hf is the tokenizer's own), or serve with this one"
        )
