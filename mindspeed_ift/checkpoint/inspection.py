"""What lies in a folder of weights, of any kind, without loading it: its tensors, what is said of it, what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mindspeed_ift.checkpoint import index, megatron
from mindspeed_ift.checkpoint.huggingface import DTYPES, Folder, read_training
from mindspeed_ift.checkpoint.loading import StoredTensor, load_places
from mindspeed_ift.checkpoint.names import hugging_face_shapes
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError


@dataclass(frozen=True)
class Tensor:
    """One tensor as it lies on the disk.

    Attributes:
        name: as the file has it.
        shape: of what is in this file; of a ``torch_dist`` folder of the whole.
        dtype: as torch spells it, without ``torch.``.
        file: relative to the folder.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str


@dataclass
class Weights:
    """A folder of weights.

    Attributes:
        folder: the ``iter_`` folder, or the Hugging Face folder.
        kind: "Hugging Face", "torch", "torch_dist" or "torch, of others".
        facts: what is said of it: architecture, layout, step, template, tokenizer.
        files: relative path -> size and perhaps checksum, as they were written.
    """

    folder: Path
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def tensors(self) -> Iterator[Tensor]:
        """All tensors, file after file.

        Raises:
            UserError: a file is missing or damaged.
        """
        if self.kind == "Hugging Face":
            yield from _of_safetensors(self.folder)
        elif self.kind == index.FORMAT:
            yield from _of_index(self.folder)
        else:
            for path in sorted(self.folder.glob("mp_rank_*/*.pt")):
                yield from _of_torch_file(path, str(path.relative_to(self.folder)))


def open_weights(folder: Path) -> Weights:
    """Find out what a folder holds; of a ``--save`` folder the newest checkpoint.

    Raises:
        UserError: nothing of the kind, or its manifest is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give a --save folder, an iter_ folder or a Hugging Face folder")
    folder = megatron.latest_folder(folder) or folder
    manifest = megatron.read_manifest(folder)
    if manifest is not None:
        facts = {key: value for key, value in manifest.items() if key != "files"}
        return Weights(folder, manifest.get("format", "torch"), facts, manifest.get("files", {}))
    if (folder / "config.json").is_file():
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return Weights(folder, "Hugging Face", {**content, **read_training(folder)})
    if any(folder.glob("mp_rank_*/*.pt")):
        return Weights(folder, "torch, of others")
    raise UserError(f"{folder} holds no checkpoint and no config.json; give a --save folder or a Hugging Face folder")


def wrong_tensors(weights: Weights) -> list[str]:
    """Tensors of a Hugging Face folder that are missing, too many or of another shape than its config.json says.

    Raises:
        UserError: a file is missing or damaged, or the architecture is another one.
    """
    expected = hugging_face_shapes(Architecture.from_hugging_face(weights.folder))
    found = {tensor.name: tensor for tensor in weights.tensors()}
    problems = [f"{weights.folder}: the tensor {name} is missing" for name in expected.keys() - found.keys()]
    for name, tensor in found.items():
        if name not in expected:
            problems.append(f"{weights.folder / tensor.file}: the tensor {name} is unexpected")
        elif tensor.shape != expected[name]:
            problems.append(
                f"{weights.folder / tensor.file}: {name} has shape {tensor.shape}, config.json says {expected[name]}"
            )
    return sorted(problems)


def _of_safetensors(folder: Path) -> Iterator[Tensor]:
    weights = Folder(folder)
    for name in weights.files:
        yield from weights.opened(name, partial(_tensors_of_file, name))


def _tensors_of_file(name: str, file: Any) -> list[Tensor]:
    parts = {key: file.get_slice(key) for key in file.keys()}
    kinds = {key: str(DTYPES.get(part.get_dtype(), part.get_dtype())) for key, part in parts.items()}
    return [Tensor(key, tuple(parts[key].get_shape()), kinds[key].removeprefix("torch."), name) for key in parts]


def _of_index(folder: Path) -> Iterator[Tensor]:
    content = index.read_index(folder)
    files = {place.fqn: stored.relative_path for place, stored in content.storage_data.items()}
    for name, known in content.state_dict_metadata.items():
        if hasattr(known, "properties"):
            dtype = str(known.properties.dtype).removeprefix("torch.")
            yield Tensor(name, tuple(known.size), dtype, files.get(name, ""))


def _of_torch_file(path: Path, relative: str) -> Iterator[Tensor]:
    try:
        content = load_places(path)
    except Exception as error:  # noqa: BLE001 - a damaged file raises many kinds
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path} cannot be read without running code of its own, or is damaged ({reason}); copy it again"
        ) from None
    yield from _inside(content, "", relative)


def _inside(content: Any, prefix: str, file: str) -> Iterator[Tensor]:
    if isinstance(content, StoredTensor):
        yield Tensor(prefix, tuple(content.shape), str(content.dtype).removeprefix("torch."), file)
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _inside(value, f"{prefix}/{key}" if prefix else str(key), file)
    elif isinstance(content, (list, tuple)):
        for number, value in enumerate(content):
            yield from _inside(value, f"{prefix}/{number}", file)
