"""Files of ``torch.save`` read without running what others have put into them, and without their tensors if so wanted.

Such a file is a ZIP archive that compresses nothing: a pickle in which each tensor names its storage, and the bytes of each
storage. It is read by that, the same way for every version of torch, and by names that are known, and no others.
"""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from mindspeed_ift.checkpoint.placed import Place

_STORAGES = {
    "UntypedStorage": torch.uint8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
}
_ARGUMENTS = "argparse.Namespace"
_KNOWN = {
    _ARGUMENTS: argparse.Namespace,
    "collections.OrderedDict": collections.OrderedDict,
    "torch.Size": torch.Size,
}
_REBUILD = re.compile(r"torch\._utils\._rebuild_tensor_v[23]|torch_\w+\.utils\.storage\._rebuild_\w+_tensor")
"""What makes a tensor of a storage, offset, shape, strides and more: torch's, and those of what extends it to a device."""
_PARAMETER = re.compile(r"torch\._utils\._rebuild_parameter(_with_state)?")
_TYPED = "torch._tensor._rebuild_from_type_v2"
_TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter")
_HEADER = struct.Struct("<4s22xHH")
"""In front of each part of an archive: a mark, and how long the name and what is extra are that come next."""


class StoredTensor(NamedTuple):
    """A tensor in a file.

    Attributes:
        place: of its storage, which others may share.
        dtype: of it.
        shape: of it.
        stride: as torch counts it, in elements.
        offset: of its first element in the storage, in elements.
    """

    place: Place
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int

    def of(self, storage: Tensor) -> Tensor:
        """The tensor, made of the bytes at its place (uint8, one dimension)."""
        return storage.view(self.dtype).as_strided(self.shape, self.stride, self.offset)


def load_without_code(path: str | Path) -> Any:
    """What `torch.save` wrote, its tensors on the host.

    Megatron keeps its arguments beside the tensors, with objects of classes that are not here; of these files plain values
    and tensors are taken, and nothing is known of the rest. Any other file may have nothing but plain values and tensors.

    Raises:
        Exception: of many kinds, if it is damaged, or would run code.
    """
    storages: dict[Place, Tensor] = {}
    with open(path, "rb") as file:

        def read(one: StoredTensor) -> Tensor:
            if one.place not in storages:
                storages[one.place] = torch.empty(one.place.length, dtype=torch.uint8)
                file.seek(one.place.start)
                file.readinto(memoryview(storages[one.place].numpy()))  # type: ignore[attr-defined]
            return one.of(storages[one.place])

        return _load(file, None, read)


def load_places(path: str | Path, within: Place | None = None) -> Any:
    """As `load_without_code`, with a `StoredTensor` in the place of each tensor.

    Args:
        path: of the file.
        within: where in it the archive lies, if it is not all of it.

    Raises:
        Exception: of many kinds, if it is damaged, or would run code.
    """
    with open(path, "rb") as file:
        return _load(file, within, lambda one: one)


def _load(file: BinaryIO, within: Place | None, tensor: Callable[[StoredTensor], Any]) -> Any:
    archive = _Archive(file, within or Place(0, os.fstat(file.fileno()).st_size))
    order = archive.read("byteorder") if "byteorder" in archive else b"little"
    if order.decode() != sys.byteorder:
        raise pickle.UnpicklingError(f"it was written on a machine whose byte order is {order.decode()}")
    return _Unpickler(archive, tensor).content()


class _Archive:
    """The parts of an archive, by their names without what all names begin with, in a part of a file."""

    def __init__(self, file: BinaryIO, within: Place) -> None:
        self._file, self._within = file, within
        with zipfile.ZipFile(_Window(file, within)) as directory:
            found = directory.infolist()
        before = found[0].filename.find("/") + 1 if found else 0
        self._parts = {one.filename[before:]: one for one in found}

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def place(self, name: str) -> Place:
        """Where the bytes of a part lie in the file."""
        if name not in self._parts:
            raise zipfile.BadZipFile(f"{name} is not in it")
        part = self._parts[name]
        header = self._within.start + part.header_offset
        mark, *lengths = _HEADER.unpack(os.pread(self._file.fileno(), _HEADER.size, header))
        place = Place(header + _HEADER.size + sum(lengths), part.file_size)
        if mark != b"PK\3\4" or part.compress_type != zipfile.ZIP_STORED or sum(place) > sum(self._within):
            raise zipfile.BadZipFile(f"{name} is damaged")
        return place

    def read(self, name: str) -> bytes:
        """The bytes of a part."""
        place = self.place(name)
        return os.pread(self._file.fileno(), place.length, place.start)


class _Unpickler(pickle.Unpickler):
    """Makes tensors and plain values; beside arguments of everything else nothing."""

    def __init__(self, archive: _Archive, tensor: Callable[[StoredTensor], Any]) -> None:
        super().__init__(io.BytesIO(archive.read("data.pkl")))
        self._archive, self._made, self._met = archive, tensor, set[str]()

    def content(self) -> Any:
        content = self.load()
        unknown = self._met - _KNOWN.keys()
        if unknown and _ARGUMENTS not in self._met:
            raise pickle.UnpicklingError(f"{min(unknown)} has no place beside weights")
        return content

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if _REBUILD.fullmatch(full):
            return self._tensor_of_dtype if name.endswith("_v3") else self._tensor
        if _PARAMETER.fullmatch(full):
            return self._parameter
        if full == _TYPED:
            return self._typed
        if full not in _TYPES:
            self._met.add(full)
        return _KNOWN.get(full, _Nothing)

    def persistent_load(self, known_as: Any) -> tuple[torch.dtype, Place]:
        _, dtype, key, _, count = known_as
        place = self._archive.place(f"data/{key}")
        if place.length != count * dtype.itemsize:
            raise pickle.UnpicklingError(f"data/{key} has {place.length} bytes in place of {count * dtype.itemsize}")
        return dtype, place

    def _tensor(self, storage: tuple[torch.dtype, Place], offset: int, size: Any, stride: Any, *_: Any) -> Any:
        dtype, place = storage
        shape, stride = torch.Size(size), tuple(stride)
        end = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1 if all(shape) else 0
        if min(offset, *shape, *stride, 0) < 0 or end * dtype.itemsize > place.length:
            raise pickle.UnpicklingError(f"a tensor of shape {tuple(shape)} does not lie within its bytes")
        return self._made(StoredTensor(place, dtype, shape, stride, offset))

    def _tensor_of_dtype(
        self,
        storage: tuple[Any, Place],
        offset: int,
        size: Any,
        stride: Any,
        _: Any,
        __: Any,
        dtype: torch.dtype,
        *___: Any,
    ) -> Any:
        return self._tensor((dtype, storage[1]), offset, size, stride)

    def _parameter(self, tensor: Any, *_: Any) -> Any:
        return tensor

    def _typed(self, rebuild: Callable[..., Any], _: Any, arguments: Any, *__: Any) -> Any:
        return rebuild(*arguments)


class _Nothing:
    """Stands for whatever is not known here."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: BinaryIO, place: Place) -> None:
        self._file, self._place, self._at = file, place, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._place.length}[whence]
        if origin + offset < 0:
            raise OSError("nothing is there")
        self._at = origin + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._place.length - self._at)]
        count = os.preadv(self._file.fileno(), [view], self._place.start + self._at)
        self._at += count
        return count
