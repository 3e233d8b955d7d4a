"""Are the files of a dataset or of weights there, in their sizes: what can be told without reading them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspeed_ift.checkpoint.checksums import wrong_size
from mindspeed_ift.checkpoint.inspection import open_weights, wrong_tensors
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.indexed import IndexedColumn, read_manifest
from mindspeed_ift.verify.dataset import column_names


def dataset_sizes(prefix: str) -> tuple[str, list[str]]:
    """What was looked at, and a line for each problem.

    Raises:
        UserError: there is no dataset at ``prefix``, or its manifest cannot be read.
    """
    manifest = read_manifest(prefix)
    files: Mapping[str, Any] = (manifest or {}).get("files", {})
    problems = _wrong_sizes(Path(prefix).parent, files)
    names = column_names(prefix, manifest)
    documents = 0
    for path in names.values():
        try:
            documents = len(IndexedColumn(path))  # holds the size of .bin to what .idx says
        except UserError as error:
            problems.append(str(error))
    known = f"{len(files)} files in their sizes" if manifest is not None else "no manifest, so that .idx alone tells"
    return f"{len(names)} columns of {documents:,} documents; {known}", problems


def checkpoint_sizes(folder: Path) -> tuple[str, list[str]]:
    """What was looked at, and a line for each problem: the newest checkpoint, or a Hugging Face folder's tensors.

    Raises:
        UserError: nothing of the kind is there, or a file is damaged.
    """
    weights = open_weights(folder)
    problems = _wrong_sizes(weights.folder, weights.files)
    if weights.kind == "Hugging Face":
        problems += wrong_tensors(weights)
    step = f", step {weights.facts['iteration']}" if "iteration" in weights.facts else ""
    return f"{weights.folder.name} ({weights.kind}{step}): {len(weights.files)} files in their sizes", problems


def _wrong_sizes(folder: Path, files: Mapping[str, Any]) -> list[str]:
    found = (wrong_size(folder / name, noted) for name, noted in files.items())
    return [problem for problem in found if problem is not None]
