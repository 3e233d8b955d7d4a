"""Megatron's ``torch_dist`` folders: each tensor in rectangles, as the ranks held them, to be read as any ranks hold them.

The files are those of torch.distributed.checkpoint, which Megatron writes too: of each rank files of tensors, and one
index (`index.py`).
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from torch.distributed.checkpoint import metadata

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.index import Stored, read_index
from mindspeed_ift.checkpoint.names import Stage
from mindspeed_ift.checkpoint.placed import Place, PlacedFile
from mindspeed_ift.checkpoint.torch_file import LazyTensors, place_in_archive, read_tensor
from mindspeed_ift.config.errors import UserError

RENAMED = {
    ".self_attention.linear_qkv.layer_norm_weight": ".input_layernorm.weight",
    ".mlp.linear_fc1.layer_norm_weight": ".pre_mlp_layernorm.weight",
}
"""Names that Megatron gives its norms in these files, after layers that fuse them -> those in the model."""
_NAMES_THERE = {ours: theirs for theirs, ours in RENAMED.items()}
_ALIGNED = 64
"""Archives begin at multiples of so many bytes, as the tensors in them do; they are used where they lie."""
_LAYER = re.compile(r"(decoder\.layers\.)(\d+)(\..+)")


@dataclass(frozen=True)
class Rectangle:
    """A part of a tensor that may be spread over many ranks.

    Attributes:
        key: name of the tensor.
        shape: of the whole tensor.
        offset: where the part begins in it.
        data: the part, to be written, or to be filled; as many dimensions as ``shape``.
        padded: rows behind those of the checkpoint are pads, to be filled with zeros (of a vocabulary).
    """

    key: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    data: Tensor
    padded: bool = False


def key_of(name: str, first_layer: int) -> str:
    """Name, in these files, of a tensor of a stage that begins at a layer of the model."""
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return name
    return f"{layer[1]}{int(layer[2]) + first_layer}{_NAMES_THERE.get(layer[3], layer[3])}"


def cut(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(offset, size) of the fewest rectangles that hold the elements ``start`` to ``stop`` of a tensor, row by row.

    A distributed optimizer deals out such runs; one of a matrix is part of a row, whole rows, and part of a row.
    """
    if start >= stop:
        return
    if len(shape) < 2:
        yield (start,), (stop - start,)
        return
    row = math.prod(shape[1:])
    first, last = start // row, stop // row
    if start % row:
        for offset, size in cut(shape[1:], start % row, min(stop - first * row, row)):
            yield (first, *offset), (1, *size)
        first += 1
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    if first <= last:
        for offset, size in cut(shape[1:], 0, stop % row):
            yield (last, *offset), (1, *size)


def write_rectangles(
    staging: Path, rank: int, rectangles: Iterable[Rectangle], number: int = 0
) -> tuple[megatron.Files, list[Stored]]:
    """Write what one rank keeps, tensors from the host.

    Args:
        staging: folder.
        rank: of the writer.
        rectangles: what it keeps.
        number: of its file; who reads the tensors of one need not look at another.

    Returns:
        What the manifest says of the file, and what the index says: nothing if there was nothing to write.

    Raises:
        RunError: it cannot be written.
    """
    relative, stored = f"__{rank}_{number}.distcp", list[Stored]()
    remaining = iter(rectangles)
    first = next(remaining, None)
    if first is None:
        return {}, []

    def write(file: BinaryIO) -> None:
        for one in itertools.chain([first], remaining):
            file.write(bytes(-file.tell() % _ALIGNED))
            start, data = file.tell(), one.data
            torch.save(data, file)
            place = (one.key, data.dtype, one.shape, one.offset, tuple(data.shape))
            stored.append(Stored(*place, relative, start, file.tell() - start))

    files = megatron.write_file(staging, relative, write)
    return files, stored


def reserve_rectangles(
    staging: Path, relative: str, rectangles: Iterable[Rectangle]
) -> tuple[PlacedFile, list[Stored]]:
    """Room for what `write_rectangles` writes, to be filled by the keys.

    Args:
        staging: folder.
        relative: path of the file in it.
        rectangles: what comes; their data may be on no device (``meta``).

    Returns:
        The file, and what the index says.

    Raises:
        OSError: it cannot be written.
    """
    path, stored = staging / relative, list[Stored]()
    with torch.serialization.skip_data(), open(path, "wb") as file:
        for one in rectangles:
            file.write(bytes(-file.tell() % _ALIGNED))
            start, dtype, size = file.tell(), one.data.dtype, tuple(one.data.shape)
            torch.save(torch.empty(size, dtype=dtype), file)  # never touched, so no memory is taken
            stored.append(Stored(one.key, dtype, one.shape, one.offset, size, relative, start, file.tell() - start))
    places = {one.key: place_in_archive(path, Place(one.start, one.length)).place for one in stored}
    return PlacedFile(path, places, checksum=True), stored


class Reader:
    """The tensors of a ``torch_dist`` folder, whoever has written which part of them.

    Args:
        folder: an ``iter_`` folder.
        check: compare the checksum of each file that is read.

    Raises:
        UserError: its index is missing or damaged.
    """

    def __init__(self, folder: Path, check: bool = False) -> None:
        self.folder, self.check = Path(folder), check
        content = read_index(self.folder)
        self._tensors = content.state_dict_metadata
        self._places = content.storage_data
        self._part = functools.lru_cache(maxsize=4)(self._read_part)

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def stage(self, stage: Stage) -> LazyTensors:
        """The weights of some layers, and of the ends of the model that lie with them.

        Returns:
            As the state dict of a pipeline stage: layers are counted inside it. Each tensor is read when it is asked for
            (`tensor`).
        """
        names = {}
        for key in (key for key in self._tensors if not key.startswith("optimizer.")):
            layer = _LAYER.fullmatch(key)
            if layer is not None and int(layer[2]) in stage.layers:
                rest = RENAMED.get(layer[3], layer[3])
                names[f"{layer[1]}{int(layer[2]) - stage.layers.start}{rest}"] = key
            elif layer is None and (stage.first if key.startswith("embed") else stage.last):
                names[key] = key
        dtypes = {name: self._tensors[key].properties.dtype for name, key in names.items()}
        return LazyTensors(dtypes, lambda name: self.tensor(names[name]))

    def tensor(self, key: str) -> Tensor:
        """The whole tensor, in the dtype in which it was written; as it lies in the file if it was written whole.

        Raises:
            UserError: it is not there, or not all of it.
        """
        known = self._known(key)
        if len(known.chunks) == 1 and known.chunks[0].sizes == known.size:
            return self._part(key, 0)
        whole = torch.empty(known.size, dtype=known.properties.dtype)
        self.fill(Rectangle(key, tuple(known.size), (0,) * whole.dim(), whole))
        return whole

    def fill(self, wanted: Rectangle) -> None:
        """Copy into ``wanted.data`` what was written there.

        Raises:
            UserError: the tensor is not there, has another shape, or not all of the part was written.
        """
        known = self._known(wanted.key)
        here = tuple(known.size)
        if (here[1:] if wanted.padded else here) != (wanted.shape[1:] if wanted.padded else wanted.shape):
            raise UserError(
                f"{self.folder}: {wanted.key} has shape {here}, the model {wanted.shape}; give the same architecture"
            )
        size, found = tuple(wanted.data.shape), 0
        for number, chunk in enumerate(known.chunks):
            inside = _overlap(wanted.offset, size, chunk.offsets, chunk.sizes)
            if inside is not None:
                start, stop = inside
                part = self._part(wanted.key, number)[_slices(start, stop, chunk.offsets)]
                with torch.no_grad():
                    wanted.data[_slices(start, stop, wanted.offset)].copy_(part)
                found += part.numel()
        within = _overlap(wanted.offset, size, (0,) * len(here), here)
        expected = math.prod(b - a for a, b in zip(*within)) if within is not None else 0
        if found != expected:
            raise UserError(f"{self.folder}: parts of the tensor {wanted.key} are missing; take an older checkpoint")
        if expected < wanted.data.numel():
            with torch.no_grad():
                wanted.data[max(here[0] - wanted.offset[0], 0) :].zero_()

    def _known(self, key: str) -> metadata.TensorStorageMetadata:
        known = self._tensors.get(key)
        if not isinstance(known, metadata.TensorStorageMetadata):
            remedy = " --no-load-optim goes on without it" if key.startswith("optimizer.") else ""
            raise UserError(
                f"{self.folder}: the tensor {key} is missing; is it of this architecture, and of these --lora-* flags?"
                + remedy
            )
        return known

    def _read_part(self, key: str, number: int) -> Tensor:
        chunk = self._tensors[key].chunks[number]
        place = self._places[metadata.MetadataIndex(key, chunk.offsets)]
        path = self.folder / place.relative_path
        reason = megatron.changed(self.folder, [place.relative_path]) if self.check else None
        if reason is not None:
            raise UserError(f"{reason}; take an older checkpoint")
        return read_tensor(path, place_in_archive(path, Place(place.offset, place.length)))


def _overlap(
    offset: Sequence[int], size: Sequence[int], other: Sequence[int], other_size: Sequence[int]
) -> tuple[list[int], list[int]] | None:
    """First and last (exclusive) place that two rectangles share, or None."""
    start = [max(a, b) for a, b in zip(offset, other, strict=True)]
    stop = [min(a + n, b + m) for a, n, b, m in zip(offset, size, other, other_size, strict=True)]
    return (start, stop) if all(a < b for a, b in zip(start, stop)) else None


def _slices(start: Sequence[int], stop: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, origin))
