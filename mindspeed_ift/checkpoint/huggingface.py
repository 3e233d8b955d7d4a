"""Hugging Face folders: tensors read one by one from safetensors, folders written aside and renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mindspeed_ift.config.errors import RunError, UserError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_TRAINING = "mindspeed_ift.json"
"""How the model was trained to be asked; others overlook the file."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


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
        self._open: dict[str, Any] = {}

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._files)

    @property
    def files(self) -> list[str]:
        """Names of all files of weights, in order."""
        return sorted(set(self._files.values()))

    @property
    def size(self) -> int:
        """Bytes of the files.

        Raises:
            UserError: one is missing.
        """
        paths = [self.path / name for name in set(self._files.values())]
        for path in paths:
            if not path.is_file():
                raise UserError(f"{path} is missing; copy the folder again")
        return sum(path.stat().st_size for path in paths)

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor, checked.

        Raises:
            UserError: missing, or of another shape.
        """
        if name not in self._files:
            raise UserError(f"{self.path}: the tensor {name} is missing; is the folder complete?")
        tensor = self._file(self._files[name]).get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise UserError(
                f"{self.path / self._files[name]}: {name} has shape {tuple(tensor.shape)}, config.json says {shape}"
            )
        return tensor

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
        self._open = {}
        return {name: _SINGLE for name in self._file(_SINGLE).keys()}

    def _file(self, name: str) -> Any:
        if name not in self._open:
            try:
                self._open[name] = safe_open(str(self.path / name), framework="pt")
            except (SafetensorError, OSError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f"{self.path / name} cannot be read ({reason}); copy it again") from None
        return self._open[name]


def write_folder(
    path: Path,
    tensors: Iterable[tuple[str, Tensor]],
    config: dict[str, Any],
    tokenizer_folder: Path | None,
    training: dict[str, Any] | None = None,
    max_shard_bytes: int = 5 * 2**30,
) -> None:
    """Write a folder that transformers loads; it appears whole or not at all.

    Args:
        path: must not exist, or be empty.
        tensors: name and value, taken one by one.
        config: content of ``config.json``.
        tokenizer_folder: its tokenizer files are copied.
        training: what `read_training` shall find.
        max_shard_bytes: largest safetensors file.

    Raises:
        UserError: the folder is not empty.
        RunError: it cannot be written.
    """
    path = Path(path)
    refuse_occupied(path)
    staging = path.parent / f".{path.name}.saving"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        shards = _write_shards(staging, tensors, max_shard_bytes)
        _name_shards(staging, shards)
        _write_json(staging / "config.json", config)
        generation = {"do_sample": False, "eos_token_id": config.get("eos_token_id")}
        _write_json(staging / "generation_config.json", {k: v for k, v in generation.items() if v is not None})
        if training:
            _write_json(staging / _TRAINING, training)
        for name in _TOKENIZER_FILES if tokenizer_folder is not None else ():
            if (Path(tokenizer_folder or "") / name).is_file():
                shutil.copyfile(Path(tokenizer_folder or "") / name, staging / name)
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


def _write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], limit: int) -> list[dict[str, int]]:
    shards: list[dict[str, int]] = []
    pending: dict[str, Tensor] = {}

    def flush() -> None:
        if pending:
            save_file(pending, str(folder / f"part-{len(shards)}"), metadata={"format": "pt"})
            shards.append({name: tensor.nbytes for name, tensor in pending.items()})
            pending.clear()

    for name, tensor in tensors:
        if sum(held.nbytes for held in pending.values()) + tensor.nbytes > limit:
            flush()
        pending[name] = tensor.contiguous()
    flush()
    return shards


def _name_shards(folder: Path, shards: list[dict[str, int]]) -> None:
    if len(shards) == 1:
        os.replace(folder / "part-0", folder / _SINGLE)
        return
    weight_map = {}
    for number, shard in enumerate(shards):
        name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        os.replace(folder / f"part-{number}", folder / name)
        weight_map |= {tensor: name for tensor in shard}
    total = sum(sum(shard.values()) for shard in shards)
    _write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
