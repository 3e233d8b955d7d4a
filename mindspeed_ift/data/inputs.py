"""``--input`` in, files out: of a file, a folder, a glob, a Hugging Face dataset, or a list of these."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.hub import load_hub_dataset, saved_files
from mindspeed_ift.data.records import Readable, kind_of, known_kinds

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_OWN = re.compile(r".+\.(ledger\.parquet|manifest\.json|shard-\d{5}-of-\d{5}\.json)")
"""What a run leaves beside its dataset, which is no data where a folder is both input and output."""
_SPLIT = re.compile(r"(train|test|valid|validation|val|dev|eval)(?![a-z])", re.IGNORECASE)


def find_datasets(spec: str | Sequence[str]) -> list[tuple[str, list[Readable]]]:
    """The datasets that ``--input`` names, in the order given, and the files of each: see `find_files`.

    Args:
        spec: A file, a folder, a glob, a Hugging Face dataset (a folder of `save_to_disk`, or ``owner/name``), or
            several, with commas between too. A path that exists is taken as it is.

    Raises:
        UserError: Nothing is there, or a file is of no known kind.
    """
    given = [spec] if isinstance(spec, str) else spec
    split = [part for one in given for part in ([one] if _exists(_path(one)) else one.split(","))]
    parts = [part.strip() for part in split if part.strip()]
    if not parts:
        raise UserError("--input names no file; give a file, a folder, a glob, or several with commas between")
    return [(part, find_files(part)) for part in parts]


def find_files(part: str) -> list[Readable]:
    """The data files of one dataset, a folder's and a glob's in sorted order of names.

    Args:
        part: A file, folder, glob, or Hugging Face dataset.

    Raises:
        UserError: Nothing is there, or a file is of no known kind.
    """
    files = _files_of(part)
    for file in files:
        if isinstance(file, Path) and kind_of(file) is None:
            raise UserError(f"{file} is of no known kind; --input takes {known_kinds()}")
        # Python has half of a surrogate pair for a byte that is not UTF-8; neither manifest nor ledger can hold that.
        if re.search("[\ud800-\udfff\n]", str(file)):
            raise UserError(f"{ascii(str(file))} has a line break or bytes that are no UTF-8 in its name; rename it")
    return files


def _files_of(part: str) -> list[Readable]:
    """The files of one file, folder, glob or Hugging Face dataset."""
    path = _path(part)
    if not _exists(path):
        return _matching_files(part, path)
    if not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is no file but a pipe or a device, which would be read once only; write it to a file")
    if path.is_dir():
        return list(saved_files(path) or _files_of_folder(path))
    return [path]


def _path(part: str) -> Path:
    try:
        return Path(part).expanduser()
    except RuntimeError:  # "~name" of nobody
        return Path(part)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long for a name: several with commas between, perhaps
        return False


def _matching_files(part: str, path: Path) -> list[Readable]:
    """The files of a glob, or a Hugging Face dataset."""
    found: list[Readable] = sorted(file for file in _glob(path) if file.is_file())
    # A folder "data" makes "data/mine" a path with a slip, not a data set of somebody called "data".
    if not found and _HUB_NAME.fullmatch(part) and not path.suffix and not path.parent.exists():
        return [load_hub_dataset({"path": part})]
    if not found:
        raise UserError(f"no such file: {path}; check --input")
    return found


def _glob(pattern: Path) -> Iterator[Path]:
    """Paths that match; ``**`` does not follow links, which may lead in a circle."""
    steps = [step for step, name in enumerate(pattern.parts) if name == "**"]
    if not steps:
        return map(Path, glob.glob(str(pattern)))
    outer, inner = Path(*pattern.parts[: steps[0]]), str(Path(*pattern.parts[steps[0] :]))
    found = (path for folder in map(Path, glob.glob(str(outer))) for path in folder.glob(inner))
    return (path for path in found if not any(name.startswith(".") for name in path.parts[steps[0] :]))


def _files_of_folder(folder: Path) -> list[Path]:
    """Its data files, or those of its folders where it has none itself."""
    found = _data_files(folder.iterdir()) or _data_files(folder.rglob("*"))
    found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if not found:
        raise UserError(f"folder {folder} holds no data files; --input takes {known_kinds()}")
    splits: dict[str, Path] = {}
    for file in found:
        if match := _SPLIT.match(file.name):
            splits.setdefault(match[1].lower(), file)
    if "train" in splits and len(splits) > 1:
        raise UserError(
            f"folder {folder} holds several splits ({', '.join(sorted(splits))}); name one of them, for example"
            f" --input '{splits['train'].parent}/train*'"
        )
    return found


def _data_files(paths: Iterable[Path]) -> list[Path]:
    return sorted(
        path
        for path in paths
        if path.is_file() and kind_of(path) and not _OWN.fullmatch(path.name) and path.parent.suffix != ".partial"
    )
