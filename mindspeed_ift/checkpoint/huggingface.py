"""Hugging Face folders: tensors read one by one from safetensors, folders written aside and renamed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mindspeed_ift.checkpoint.placed import Place, PlacedFile, mapped
from mindspeed_ift.checkpoint.threads import run_all
from mindspeed_ift.config.errors import RunError, UserError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_TRAINING = "mindspeed_ift.json"
"""How the model was trained to be asked; others overlook the file."""
_EMBEDDING, _HEAD = _OF_THE_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64, "I64": torch.int64}
"""What safetensors files call the types of tensors."""
_KINDS = {dtype: kind for kind, dtype in DTYPES.items()}
T = TypeVar("T")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


class _Entry(NamedTuple):
    """What the header of a file says of a tensor; a dtype that no weight has is None."""

    dtype: torch.dtype | None
    shape: tuple[int, ...]
    place: Place


class Folder:
    """The tensors of a Hugging Face folder, read from the memory map as they are asked for.

    Args:
        path: folder with ``model.safetensors`` or ``model.safetensors.index.json``.

    Raises:
        UserError: no weights, or an unreadable file.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._files = self._read_index()
        self._headers: dict[str, dict[str, _Entry]] = {}

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._files)

    @property
    def files(self) -> list[str]:
        """Names of all files of weights, in order."""
        return sorted(set(self._files.values()))

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor, checked.

        Raises:
            UserError: missing, of a type that is no weight's, or of another shape.
        """
        file = self._file_of(name)
        entry = self._header(file).get(name)
        if entry is None:
            raise UserError(f"{self.path / file}: the tensor {name} is missing; is the folder complete?")
        tensor = mapped(self.path / file, entry.place).view(self.dtype(name)).view(entry.shape)
        if tuple(tensor.shape) != shape:
            rows = tensor.shape[0] if tensor.dim() == 2 else 0
            remedy = (
                f"; if its vocabulary was resized, write vocab_size {rows} into config.json"
                if name in _OF_THE_VOCABULARY and tuple(tensor.shape[1:]) == shape[1:]
                else "; is it that of these weights?"
            )
            raise UserError(
                f"{self.path / file}: {name} has shape {tuple(tensor.shape)}, config.json says {shape}{remedy}"
            )
        return tensor

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor, without reading it.

        Raises:
            UserError: missing, of a type that is no weight's, or its file is damaged.
        """
        entry = self._header(self._file_of(name)).get(name)
        dtype = entry.dtype if entry is not None else None
        if dtype is None or not dtype.is_floating_point:
            raise UserError(
                f"{self.path / self._file_of(name)}: {name} is missing, or no tensor of F32, F16 or BF16; give the"
                " weights as they were published, not quantized"
            )
        return dtype

    def parts(self, name: str, shape: tuple[int, ...]) -> list[Tensor]:
        """The tensor, in one."""
        return [self.tensor(name, shape)]

    def together(self, name: str) -> str:
        """Each is read for itself."""
        return name

    def opened(self, name: str, read: Callable[[Any], T]) -> T:
        """What is read of a file that the library has opened, and so found whole.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            with safe_open(str(self.path / name), framework="pt") as file:
                return read(file)
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path / name} cannot be read ({reason}); copy it again") from None

    def refuse_others(self, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> None:
        """Do nothing if the names are those of ``shapes``; of a tied model a head that is the embedding may be there.

        Raises:
            UserError: naming the first that is missing or for nothing.
        """
        for name in sorted(shapes.keys() - self.names):
            self._file_of(name)
        others = self.names - shapes.keys()
        if tied and _HEAD in others:
            shape = shapes[_EMBEDDING]
            if torch.equal(self.tensor(_HEAD, shape), self.tensor(_EMBEDDING, shape)):
                others -= {_HEAD}
        for name in sorted(others):
            told = (
                " and is not the embedding, though config.json says tie_word_embeddings"
                if tied and name == _HEAD
                else ""
            )
            raise UserError(
                f"{self.path / self._files[name]}: the tensor {name} is unexpected{told}; is config.json that of these"
                " weights?"
            )

    def _file_of(self, name: str) -> str:
        if name not in self._files:
            raise UserError(f"{self.path}: the tensor {name} is missing; is the folder complete?")
        return self._files[name]

    def _read_index(self) -> dict[str, str]:
        if (self.path / _INDEX).is_file():
            try:
                return dict(json.loads((self.path / _INDEX).read_text(encoding="utf-8"))["weight_map"])
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{self.path / _INDEX} is damaged; copy the folder again") from None
        if not (self.path / _SINGLE).is_file():
            raise UserError(
                f"{self.path} holds no {_SINGLE} and no {_INDEX}; give a Hugging Face folder in safetensors"
            )
        return dict.fromkeys(self.opened(_SINGLE, lambda file: list(file.keys())), _SINGLE)

    def _header(self, file: str) -> dict[str, _Entry]:
        """Where the tensors of a file lie; the library has found it to be whole."""
        if file not in self._headers:
            self.opened(file, lambda content: None)
            with open(self.path / file, "rb") as opened:
                start = 8 + int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(start - 8))
            self._headers[file] = {
                name: _Entry(
                    DTYPES.get(told["dtype"]),
                    tuple(told["shape"]),
                    Place(start + told["data_offsets"][0], told["data_offsets"][1] - told["data_offsets"][0]),
                )
                for name, told in header.items()
                if name != "__metadata__"
            }
        return self._headers[file]


class Lazy(NamedTuple):
    """A tensor that is read when its turn comes, in parts whose bytes are its own one after another.

    Those of the same ``together`` are read one by one in one thread.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Iterable[Tensor]]
    together: str | None = None


def write_folder(
    path: Path,
    tensors: Sequence[Lazy],
    config: dict[str, Any],
    tokenizer_folder: Path | None,
    training: dict[str, Any] | None = None,
    *,
    max_shard_bytes: int = 5 * 2**30,
    workers: int = 1,
    settled: Callable[[], None] = lambda: None,
) -> None:
    """Write a folder that transformers loads; it appears whole or not at all.

    Args:
        path: must not exist, or be empty.
        tensors: in the order in which they lie in the files; of files with several dtypes the longer first.
        config: content of ``config.json``.
        tokenizer_folder: its tokenizer files are copied.
        training: what `read_training` shall find.
        max_shard_bytes: largest safetensors file.
        workers: threads that read and write.
        settled: called before the folder appears; it does not if that raises.

    Raises:
        UserError: the folder is not empty.
        RunError: it cannot be written.
    """
    with appearing(Path(path)) as staging:
        _write_shards(staging, tensors, max_shard_bytes, workers)
        _write_json(staging / "config.json", config)
        generation = {"do_sample": False, "eos_token_id": config.get("eos_token_id")}
        _write_json(staging / "generation_config.json", {k: v for k, v in generation.items() if v is not None})
        if training:
            _write_json(staging / _TRAINING, training)
        for file in [tokenizer_folder / name for name in _TOKENIZER_FILES] if tokenizer_folder is not None else []:
            if file.is_file():
                shutil.copyfile(file, staging / file.name)
        settled()


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A folder to write into, which becomes ``path`` once it is left without an error, and else is gone.

    Raises:
        UserError: ``path`` is not empty.
        RunError: it cannot be written.
    """
    refuse_occupied(path)
    staging = path.parent / f".{path.name}.saving"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        if path.is_dir():
            path.rmdir()
        os.replace(staging, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise RunError(f"cannot write {path} ({reason}); free some space, or give another --save-dir") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_training(path: Path) -> dict[str, Any]:
    """Template and thinking mode that the model of a folder was trained with; empty for a folder of others.

    Raises:
        UserError: the file is damaged.
    """
    file = Path(path) / _TRAINING
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(f"{file} is damaged; export the model again, or remove the file") from None


def refuse_occupied(path: Path) -> None:
    """Raise when ``path`` is a file or a folder with content.

    Raises:
        UserError: so.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError(f"--save-dir {path} exists and is not empty; give another folder or remove it")


def _write_shards(folder: Path, tensors: Sequence[Lazy], limit: int, workers: int) -> None:
    shards: list[list[Lazy]] = [[]]
    for one in tensors:
        if shards[-1] and sum(map(_bytes, shards[-1])) + _bytes(one) > limit:
            shards.append([])
        shards[-1].append(one)
    names = [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    if len(shards) == 1:
        names = [_SINGLE]
    else:
        weight_map = {one.name: name for name, shard in zip(names, shards, strict=True) for one in shard}
        _write_json(folder / _INDEX, {"metadata": {"total_size": sum(map(_bytes, tensors))}, "weight_map": weight_map})
    with contextlib.ExitStack() as opened:
        files = {}
        for name, shard in zip(names, shards, strict=True):
            file = _safetensors_file(folder / name, shard)
            opened.callback(file.close)
            files |= {one.name: file for one in shard}
        groups: dict[str, list[Lazy]] = {}
        for one in tensors:
            groups.setdefault(one.together or one.name, []).append(one)
        run_all((partial(_fill, group, files) for group in groups.values()), workers)
        for file in dict.fromkeys(files.values()):
            file.finish()


def _fill(group: Sequence[Lazy], files: Mapping[str, PlacedFile]) -> None:
    for one in group:
        files[one.name].fill(one.name, one.read())


def _bytes(one: Lazy) -> int:
    return math.prod(one.shape) * one.dtype.itemsize


def _safetensors_file(path: Path, tensors: Sequence[Lazy]) -> PlacedFile:
    """Room for what ``safetensors.torch.save_file`` writes, which wants all tensors at once.

    A file is the length of a header, the header (JSON), and the tensors' bytes one after the other.
    """
    ordered = sorted(tensors, key=lambda one: -one.dtype.itemsize)  # each begins at a multiple of its size
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in ordered:
        start, end = end, end + _bytes(one)
        header[one.name] = {"dtype": _KINDS[one.dtype], "shape": list(one.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    places = {one.name: Place(8 + len(text) + header[one.name]["data_offsets"][0], _bytes(one)) for one in ordered}
    return PlacedFile(path, places, checksum=False)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
