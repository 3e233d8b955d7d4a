"""A Hugging Face dataset in, its records out: a folder of ``save_to_disk``, or a name that `datasets` loads.

`datasets` is imported for a name only: the saved form is arrow files and a list of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_ift.config.errors import UserError, first_line

_SPLIT = "train"


@dataclass(frozen=True)
class HubDataset:
    """A dataset that `datasets` has loaded: mapped from its cache, or a stream.

    Attributes:
        name: For messages.
        dataset: ``datasets.Dataset`` or ``datasets.IterableDataset``.
    """

    name: str
    dataset: Any

    def __str__(self) -> str:
        return self.name

    @property
    def fingerprint(self) -> str | None:
        """By which `datasets` knows the records; None for a stream, which may hold others another time."""
        return getattr(self.dataset, "_fingerprint", None)

    def read(self, rows: int) -> Iterator[dict[str, Any]]:
        """Its records, ``rows`` of them in memory at a time.

        Raises:
            UserError: A record cannot be read.
        """
        try:
            for batch in self.dataset.with_format("arrow").iter(batch_size=rows):
                yield from batch.to_pylist()
        except (OSError, ValueError) as error:
            raise UserError(f"Hugging Face dataset {self.name} cannot be read ({first_line(error)})") from error


def load_hub_dataset(parameters: Mapping[str, Any], cache_dir: str = "") -> HubDataset:
    """Load a dataset by name; its split ``train`` unless another is asked for.

    Args:
        parameters: Of ``datasets.load_dataset``; ``path`` is the name.
        cache_dir: Where `datasets` keeps it; "" for its own place.

    Raises:
        UserError: It is not there, neither in the cache nor on the hub, or the parameters cannot be used.
    """
    import datasets

    given = {"split": _SPLIT, **({"cache_dir": cache_dir} if cache_dir else {}), **parameters}
    name = str(parameters.get("path"))
    try:
        dataset = datasets.load_dataset(**given)
    except Exception as error:  # It has a dozen kinds of errors, most of them of the libraries below it.
        raise UserError(
            f"no such file, and no Hugging Face dataset that can be loaded: {name} ({first_line(error)}); check the"
            " name, and that it is cached or the hub can be reached"
        ) from error
    if isinstance(dataset, dict):
        raise UserError(f"Hugging Face dataset {name}: 'split' must name one split, of: {', '.join(dataset)}")
    return HubDataset(name, dataset)


def read_parameters(text: str) -> dict[str, Any]:
    """``--hf-datasets-params``: a file of JSON as MindSpeed-LLM has it, or the JSON itself.

    Raises:
        UserError: It is not an object with a ``path``.
    """
    source = "it"
    if not text.lstrip().startswith("{"):
        source = text
        try:
            text = Path(text).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--hf-datasets-params {source} cannot be read ({error})") from error
    try:
        parameters = json.loads(text)
    except ValueError as error:
        raise UserError(f"--hf-datasets-params: {source} is not JSON ({error}); mend it") from error
    if not isinstance(parameters, dict) or not isinstance(parameters.get("path"), str):
        raise UserError(
            f"--hf-datasets-params: {source} must be an object with the parameters of datasets.load_dataset, for"
            ' example {"path": "owner/name", "split": "train"}'
        )
    return parameters


def saved_files(folder: Path) -> list[Path]:
    """The arrow files of a folder that ``save_to_disk`` wrote, in their order; none if it is no such folder.

    Of several splits ``train`` is taken, as everywhere.

    Raises:
        UserError: Its files are not whole, or it holds several splits, none of them ``train``.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _read_json(folder / "dataset_dict.json").get("splits", [])
        if _SPLIT not in splits and len(splits) != 1:
            raise UserError(
                f"{folder} holds the splits {', '.join(map(str, splits)) or 'none'}; name one, as --input"
                f" {folder}/SPLIT"
            )
        folder = folder / (_SPLIT if _SPLIT in splits else splits[0])
    if not (folder / "state.json").is_file() or not (folder / "dataset_info.json").is_file():
        return []
    state = _read_json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise UserError(f"{folder} was saved with a selection of its rows; load it and save it again with flat indices")
    files = [folder / str(entry.get("filename")) for entry in state.get("_data_files") or []]
    for file in files:
        if not file.is_file():
            raise UserError(f"{folder} is not whole: its state.json names {file.name}, which is not there")
    return files


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}); copy or save the dataset again") from error
    return content if isinstance(content, dict) else {}
