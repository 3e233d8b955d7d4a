"""Files of ``torch.save`` a tensor at a time: read from where each lies, and written into a place that was reserved.

Of the library's own: a file can be saved without its bytes, and loaded as a list of where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.config.errors import UserError


class LazyTensors(Mapping[str, Tensor]):
    """A state dict whose tensors are read each time they are asked for, and not held.

    Args:
        dtypes: of each name.
        read: gives the tensor of a name.
    """

    def __init__(self, dtypes: Mapping[str, torch.dtype], read: Callable[[str], Tensor]) -> None:
        self.dtypes, self._read = dtypes, read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.dtypes:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.dtypes

    def __iter__(self) -> Iterator[str]:
        return iter(self.dtypes)

    def __len__(self) -> int:
        return len(self.dtypes)


def places(path: Path) -> dict[str, Any]:
    """What a file of ``torch.save`` holds, its tensors without their bytes: shape, dtype, and where they lie.

    Raises:
        UserError: it is damaged.
    """
    try:
        with FakeTensorMode():
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises many kinds for a damaged file
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path} cannot be read ({reason}); take an older checkpoint") from None


def read_tensors(path: Path, content: Mapping[str, Any]) -> LazyTensors:
    """The tensors of one state dict in what `places` found in a file."""
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}

    def read(name: str) -> Tensor:
        place = tensors[name]
        storage = place.untyped_storage()
        held = torch.empty(storage.nbytes(), dtype=torch.uint8)
        with open(path, "rb", buffering=0) as file:
            file.seek(storage._checkpoint_offset)
            read_bytes(file, held)
        whole = held.view(place.dtype)
        return whole.as_strided(place.shape, place.stride(), place.storage_offset())

    return LazyTensors({name: value.dtype for name, value in tensors.items()}, read)


class ReservedFile:
    """A file of ``torch.save`` with room for its tensors, which come one by one and in any order.

    The archive's own checksums are those of the empty room; nothing of torch's looks at them.

    Args:
        staging: folder of a checkpoint that is being written.
        relative: path in it.
        state: what is saved; of its tensors, which may be on no device (``meta``), only shape and dtype. Two levels.

    Raises:
        RunError: it cannot be written.
    """

    def __init__(self, staging: Path, relative: str, state: Mapping[str, Any]) -> None:
        self.staging, self.relative, self.path = staging, relative, staging / relative
        room = {key: _room(value) if isinstance(value, Mapping) else value for key, value in state.items()}
        with megatron.told_failure(self.path):
            self.path.parent.mkdir(exist_ok=True)
            with torch.serialization.skip_data(), open(self.path, "wb") as file:
                torch.save(room, file)
            self._places = places(self.path)
            self._file = open(self.path, "r+b", buffering=0)

    def fill(self, key: str, name: str, tensor: Tensor) -> None:
        """Write one tensor of the state dict ``key``.

        Raises:
            RunError: it cannot be written.
        """
        place = self._places[key][name]
        assert place.shape == tensor.shape and place.dtype is tensor.dtype, (name, place, tensor.shape, tensor.dtype)
        with megatron.told_failure(self.path):
            self._file.seek(place.untyped_storage()._checkpoint_offset)
            write_bytes(self._file, tensor)

    def finish(self) -> megatron.Files:
        """Close it; what the manifest says of it.

        Raises:
            RunError: it cannot be written.
        """
        with megatron.told_failure(self.path):
            self._file.close()
        return megatron.finish_file(self.staging, self.relative)


def read_bytes(file: Any, held: Tensor) -> None:
    """Fill a tensor of bytes.

    Raises:
        UserError: the file is at its end before.
    """
    view = memoryview(held.numpy())
    while view:  # one call reads 2 GiB at most
        count = file.readinto(view)
        if not count:
            raise UserError(f"{file.name} is cut short; take an older checkpoint")
        view = view[count:]


def write_bytes(file: Any, tensor: Tensor) -> None:
    """The elements of a tensor, row by row."""
    view = memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    while view:  # an unbuffered file may take less
        view = view[file.write(view) :]


def _room(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Never touched, so no memory is taken."""
    return {name: torch.empty(one.shape, dtype=one.dtype) for name, one in tensors.items()}
