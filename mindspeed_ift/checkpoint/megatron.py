"""Megatron checkpoints: ``iter_NNNNNNN/mp_rank_TT[_PPP][_EEE]/*.pt``, written aside, checksummed, renamed, then announced."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mindspeed_ift.checkpoint.checksums import described, is_as_described, wrong_size
from mindspeed_ift.checkpoint.loading import load_without_code
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import RunError, UserError
from mindspeed_ift.config.layout import Layout
from mindspeed_ift.data.staging import write_text

TRACKER = "latest_checkpointed_iteration.txt"
BEST = "best.txt"
"""Names the step of the checkpoint with the lowest validation loss, as the tracker names the newest."""
RELEASE = "release"
"""What Megatron's converters may write instead of a number: the folder of that name is the checkpoint."""
MODEL_FILE = "model_optim_rng.pt"
_MANIFEST = "manifest.json"
_MANIFEST_KEYS = ("architecture", "layout", "stage_layers", "dtype", "distributed_optimizer", "iteration")

Files = dict[str, dict[str, Any]]
"""Path inside a checkpoint -> its size and checksum."""


def iteration_folder(directory: Path, iteration: int) -> Path:
    """Where the checkpoint of a step lies."""
    return Path(directory) / f"iter_{iteration:07d}"


def staging_folder(directory: Path, iteration: int) -> Path:
    """Where it is written before it is whole."""
    return Path(directory) / f".iter_{iteration:07d}.saving"


def model_keys(chunks: int) -> list[str]:
    """Under which names a rank's file keeps its stages: Megatron's, which numbers several."""
    return ["model"] if chunks == 1 else [f"model{number}" for number in range(chunks)]


def describe_layout(layout: Layout) -> dict[str, int]:
    """What a manifest says of the layout under ``layout``."""
    sizes = {key: getattr(layout, key) for key in ("tensor", "pipeline", "context", "data", "expert")}
    return sizes | {"expert_tensor": layout.tensor_of_experts}


def layout_of_manifest(manifest: dict[str, Any]) -> Layout:
    """The sizes that `describe_layout` told; older manifests know no experts."""
    sizes = manifest["layout"]
    return Layout(
        sizes["tensor"],
        sizes["pipeline"],
        sizes["data"],
        context=sizes.get("context", 1),
        expert=sizes.get("expert", 1),
        expert_tensor=sizes.get("expert_tensor"),
    )


def stage_layers(architecture: Architecture, layout: Layout) -> list[list[int]]:
    """Layers of each stage, first and behind the last, as a manifest has them."""
    return [[stage.start, stage.stop] for stage in layout.stage_layers(architecture.num_layers)]


def describe_weights(
    architecture: Architecture, layout: Layout, padded_vocab: int, dtype: torch.dtype
) -> dict[str, Any]:
    """What a manifest says of weights, and of how they are cut."""
    return {
        "architecture": asdict(architecture),
        "layout": describe_layout(layout),
        "stage_layers": stage_layers(architecture, layout),
        "padded_vocab_size": padded_vocab,
        "dtype": str(dtype).removeprefix("torch."),
    }


def begin_save(directory: Path, iteration: int) -> Path:
    """Make an empty staging folder, once, before any rank writes; what killed runs left in theirs goes."""
    staging = staging_folder(directory, iteration)
    for left in Path(directory).glob(".iter_*.saving"):
        shutil.rmtree(left, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def abandon_save(staging: Path) -> None:
    """Remove what a failed save has written, and the run's folder if nothing else is in it."""
    shutil.rmtree(staging, ignore_errors=True)
    with contextlib.suppress(OSError):
        staging.parent.rmdir()


def save_file(staging: Path, relative: str, content: Any) -> Files:
    """Write what `read_file` reads, tensors from the host; returns and raises as `write_file`."""
    return write_file(staging, relative, lambda file: torch.save(content, file))


def write_file(staging: Path, relative: str, write: Callable[[BinaryIO], Any]) -> Files:
    """Write one file of a checkpoint, down to the disk.

    Returns:
        What the manifest says of it.

    Raises:
        RunError: it cannot be written.
    """
    path = staging / relative
    with told_failure(path):
        path.parent.mkdir(exist_ok=True)
        with open(path, "wb") as file:
            write(file)
    return finish_file(staging, relative)


@contextlib.contextmanager
def told_failure(path: Path) -> Iterator[None]:
    """Say of a failed write which file it was of, and why.

    Raises:
        RunError: so.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch hides a full disk behind an error of its own
        reason = _reason_of_failed_write(error)
        raise RunError(f"cannot write {path} ({reason}); free some space, or give another folder") from error


def finish_file(staging: Path, relative: str) -> Files:
    """Bring a file that was written down to the disk.

    Returns:
        What the manifest says of it.

    Raises:
        RunError: it cannot be written.
    """
    path = staging / relative
    with told_failure(path), open(path, "rb") as file:
        os.fsync(file.fileno())
    return {relative: described(path)}


def commit(staging: Path, directory: Path, iteration: int, manifest: dict[str, Any], files: Files) -> None:
    """Make the checkpoint visible, by one rank after all have written: manifest, rename, and the tracker last.

    Args:
        staging: what `begin_save` made.
        directory: the run's folder.
        iteration: steps done.
        manifest: what is said of the checkpoint.
        files: what `write_file` returned, of all ranks together.
    """
    content = json.dumps({**manifest, "files": dict(sorted(files.items()))}, indent=1)
    (staging / _MANIFEST).write_text(content, encoding="utf-8")
    final, former = iteration_folder(directory, iteration), Path(f"{staging}.former")
    shutil.rmtree(former, ignore_errors=True)
    if final.exists():  # the same step, done again after a resume
        os.replace(final, former)
    os.replace(staging, final)
    shutil.rmtree(former, ignore_errors=True)
    write_text(Path(directory) / TRACKER, f"{iteration}\n")


def mark_best(directory: Path, iteration: int) -> None:
    """Name a checkpoint that is there as the best: `keep_newest` will not delete it."""
    write_text(Path(directory) / BEST, f"{iteration}\n")


def latest_folder(directory: Path) -> Path | None:
    """The checkpoint that the tracker names, or None for a folder without checkpoints.

    Where the tracker is lost, or a run was killed before its first, it is the newest of ours, which are whole or not there.

    Raises:
        UserError: the tracker holds no number, or that of a checkpoint that is not there.
    """
    path = Path(directory) / TRACKER
    if not path.is_file():
        ours = {number: one for number, one in _numbered(directory).items() if (one / _MANIFEST).is_file()}
        return ours[max(ours)] if ours else None
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    if text == RELEASE and (released := Path(directory) / RELEASE).is_dir():
        return released
    if not text.isdecimal():
        raise UserError(
            f"{path} holds '{text[:40]}', not the number of a step; write the number of an iter_ folder into it"
        )
    folder = iteration_folder(directory, int(text))
    if not folder.is_dir():
        there = ", ".join(sorted(one.name for one in Path(directory).glob("iter_*"))) or "none"
        raise UserError(
            f"{path} names {folder.name}, which is not there (there: {there}); write another number into it"
        )
    return folder


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a folder, newest first, from the one that the tracker names on.

    Raises:
        UserError: as `latest_folder`.
    """
    latest = latest_folder(directory)
    if latest is None or latest.name == RELEASE:
        return [] if latest is None else [latest]
    numbers = _numbered(directory)
    return [numbers[number] for number in sorted(numbers, reverse=True) if number <= int(latest.name[5:])]


def _numbered(directory: Path) -> dict[int, Path]:
    return {int(path.name[5:]): path for path in Path(directory).glob("iter_*") if path.name[5:].isdecimal()}


def damage(folder: Path) -> str | None:
    """What is missing of a checkpoint or has another size than it was written with; None: nothing.

    Of a checkpoint of others, which has no manifest, nothing can be said.
    """
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return str(error).partition(";")[0]
    for relative, facts in (manifest or {}).get("files", {}).items():
        if (problem := wrong_size(Path(folder) / relative, facts)) is not None:
            return problem
    return None


def changed(folder: Path, relatives: Iterable[str]) -> str | None:
    """Which of some files does not have the checksum that it was written with; None: none.

    Args:
        folder: of a checkpoint.
        relatives: as `shard_path` gives them; those that the manifest does not know are passed over.
    """
    files = (read_manifest(folder) or {}).get("files", {})
    for relative in relatives:
        path = Path(folder) / relative
        if relative in files and not is_as_described(path, files[relative]):
            return f"{path} is not what was written (its checksum differs)"
    return None


def keep_newest(directory: Path, count: int, protected: Collection[Path] = ()) -> list[Path]:
    """Delete the checkpoints that are older than the newest ``count`` whole ones; return what was deleted.

    Args:
        directory: the run's folder, its newest checkpoint whole.
        count: how many stay; damaged ones between them do not count.
        protected: of those, which stay in any case, as does the one that `mark_best` named.
    """
    spared, deleted, whole = {Path(path).absolute() for path in protected}, [], 0
    best = Path(directory) / BEST
    if best.is_file() and (number := best.read_text(encoding="utf-8").strip()).isdecimal():
        spared.add(iteration_folder(directory, int(number)).absolute())
    for folder in checkpoints(directory):
        if whole < count:
            whole += damage(folder) is None
        elif folder.absolute() not in spared:
            doomed = folder.with_name(f".{folder.name}.deleting")
            shutil.rmtree(doomed, ignore_errors=True)
            os.replace(folder, doomed)  # never half there under its name
            deleted.append(folder)
    for doomed in Path(directory).glob(".iter_*.deleting"):  # of a process that was killed meanwhile, too
        shutil.rmtree(doomed, ignore_errors=True)
    return deleted


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What the writer said of a checkpoint, or None for one of others.

    Raises:
        UserError: it is damaged.
    """
    path = Path(folder) / _MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in _MANIFEST_KEYS if key not in manifest]
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged; take an older checkpoint") from None
    if missing:
        raise UserError(
            f"{path} is not the manifest of a checkpoint ({missing[0]} is missing); take an older checkpoint"
        )
    try:
        Architecture(**manifest["architecture"])
        _ = [facts["bytes"] for facts in manifest.get("files", {}).values()]
    except (AttributeError, KeyError, TypeError, ValueError, UserError) as error:
        raise UserError(
            f"{path} is not the manifest of a checkpoint of this version ({error}); take an older checkpoint"
        ) from None
    return manifest


def read_file(folder: Path, relative: str) -> Any:
    """What `torch.save` wrote into a checkpoint, its checksum compared with the manifest's.

    Raises:
        UserError: missing, cut short or changed since it was written.
    """
    path = checked_file(folder, relative)
    try:
        return load_without_code(path)
    except Exception as error:  # noqa: BLE001 - torch raises many kinds for a damaged file
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path} cannot be read ({reason}); take an older checkpoint") from None


def checked_file(folder: Path, relative: str, *, checksum: bool = True) -> Path:
    """A file of a checkpoint, its size and its checksum compared with the manifest's.

    Args:
        folder: of the checkpoint.
        relative: path in it.
        checksum: False compares the size alone.

    Raises:
        UserError: missing, cut short or changed since it was written.
    """
    path = Path(folder) / relative
    if not path.is_file():
        raise UserError(f"{path} is missing: the checkpoint is not complete, or of another layout; take an older one")
    facts = (read_manifest(folder) or {}).get("files", {}).get(relative)
    if facts is not None and (path.stat().st_size != facts["bytes"] or (checksum and not is_as_described(path, facts))):
        raise UserError(f"{path} is not what was written (size or checksum differ); take an older checkpoint")
    return path


def shard_path(
    layout: Layout, tensor_rank: int, pipeline_rank: int, expert_rank: int = 0, name: str = MODEL_FILE
) -> str:
    """Where a rank's file lies in a checkpoint; the name has what is split only (Megatron's rule)."""
    folder = f"mp_rank_{tensor_rank:02d}" + (f"_{pipeline_rank:03d}" if layout.pipeline > 1 else "")
    return folder + (f"_{expert_rank:03d}" if layout.expert > 1 else "") + f"/{name}"


def _reason_of_failed_write(error: BaseException) -> str:
    """What the system said first."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return str(getattr(cause, "strerror", None) or " ".join(str(error).split())[:160])
