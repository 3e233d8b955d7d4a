"""The index of a ``torch_dist`` folder: which part of which tensor lies where.

Torch pickles it, so that torch and Megatron read it too; it is read here by names that are known, and no others.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from pathlib import Path, PosixPath
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint import filesystem, metadata

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.config.errors import UserError

FORMAT = "torch_dist"
"""Of ``--ckpt-format``, and in the manifest."""
_INDEX = ".metadata"
_MEGATRON = {
    "sharded_backend": FORMAT,
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


class Stored(NamedTuple):
    """Where a rectangle was written."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]
    file: str
    start: int
    length: int


def write_index(staging: Path, stored: Iterable[Stored], iteration: int) -> megatron.Files:
    """Say what all ranks have written, by one of them.

    Raises:
        RunError: it cannot be written.
    """
    tensors: dict[str, metadata.TensorStorageMetadata] = {}
    places: dict[metadata.MetadataIndex, Any] = {}
    for one in stored:
        if one.key not in tensors:
            properties = metadata.TensorProperties(dtype=one.dtype)
            tensors[one.key] = metadata.TensorStorageMetadata(properties, torch.Size(one.shape), [])
        chunks = tensors[one.key].chunks
        index = metadata.MetadataIndex(one.key, one.offset, len(chunks))
        chunks.append(metadata.ChunkStorageMetadata(torch.Size(one.offset), torch.Size(one.size)))
        places[index] = filesystem._StorageInfo(one.file, one.start, one.length)
    content = metadata.Metadata(tensors, storage_data=places)
    common = {"checkpoint_version": 3.0, "iteration": iteration}
    files = megatron.write_file(staging, _INDEX, lambda file: pickle.dump(content, file))
    files |= megatron.write_file(staging, "metadata.json", lambda file: file.write(json.dumps(_MEGATRON).encode()))
    return files | megatron.save_file(staging, "common.pt", common)


class _Unpickler(pickle.Unpickler):
    """Makes what an index is made of, and nothing else: a pickle of others runs no code."""

    _CLASSES = (
        *(metadata.Metadata, metadata.TensorStorageMetadata, metadata.BytesStorageMetadata),
        *(metadata.ChunkStorageMetadata, metadata.TensorProperties, metadata.MetadataIndex, metadata.StorageMeta),
        *(metadata._MEM_FORMAT_ENCODING, filesystem._StorageInfo, torch.Size, PosixPath),
    )

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) == ("torch.serialization", "_get_layout"):
            return super().find_class(module, name)
        for one in self._CLASSES:
            if (one.__module__, one.__name__) == (module, name):
                return one
        raise pickle.UnpicklingError(f"{module}.{name} has no place in an index")


def read_index(folder: Path) -> metadata.Metadata:
    """What `write_index` wrote, or torch, or Megatron.

    Raises:
        UserError: it is missing or damaged, or would make anything but an index.
    """
    path = Path(folder) / _INDEX
    if not path.is_file():
        raise UserError(f"{path} is missing: the checkpoint is not complete; take an older one")
    try:
        with open(path, "rb") as file:
            content = _Unpickler(file).load()
        if not isinstance(content, metadata.Metadata) or not isinstance(content.storage_data, dict):
            raise ValueError("it is no index")
    except Exception as error:  # noqa: BLE001 - a damaged pickle raises many kinds
        raise UserError(
            f"{path} cannot be read ({' '.join(str(error).split())[:160]}); take an older checkpoint"
        ) from None
    return content
