"""A checkpoint or a Hugging Face folder in, what is missing or damaged out."""

from __future__ import annotations

from pathlib import Path

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.checksums import wrong_size
from mindspeed_ift.checkpoint.inspection import Weights, open_weights, wrong_tensors
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.verify.report import Check, Report


def verify_checkpoint(folder: Path) -> Report:
    """Check every checkpoint of a ``--save`` folder from the newest on, an ``iter_`` folder, or a Hugging Face folder.

    Raises:
        UserError: nothing of the kind is there.
    """
    report = Report()
    folders = [folder]
    if megatron.latest_folder(folder) is not None:
        folders = megatron.checkpoints(folder)
    for one in folders:
        _check_folder(one, report)
    return report


def _check_folder(folder: Path, report: Report) -> None:
    try:
        weights = open_weights(folder)
    except UserError as error:
        if not folder.is_dir() or not any(folder.iterdir()):
            raise
        report.check(folder.name).problems.append(str(error))
        return
    name = f"{weights.folder.name} ({weights.kind})"
    if weights.files:
        _check_files(weights, report.check(f"{name}: files and checksums"))
    else:
        report.notices.append(f"{weights.folder} has no checksums: only what can be read of its files was checked")
    _check_tensors(weights, report.check(f"{name}: tensors"))


def _check_files(weights: Weights, check: Check) -> None:
    total = sum(facts["bytes"] for facts in weights.files.values())
    check.examined = f"{len(weights.files)} files, {total:,} bytes"
    for relative, facts in weights.files.items():
        problem = wrong_size(weights.folder / relative, facts) or megatron.changed(weights.folder, [relative])
        check.problems += [problem] if problem is not None else []


def _check_tensors(weights: Weights, check: Check) -> None:
    try:
        tensors = list(weights.tensors())
        if weights.kind == "Hugging Face":
            check.problems += wrong_tensors(weights)
    except UserError as error:
        check.problems.append(str(error))
        return
    check.examined = f"{len(tensors):,} tensors"
    if not tensors:
        check.problems.append(f"{weights.folder} holds no tensor")
