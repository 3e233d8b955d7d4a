"""Files of ``torch.save`` a tensor at a time: read from where each lies, and written into a place that was reserved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.checksums import described
from mindspeed_ift.checkpoint.loading import StoredTensor, load_places
from mindspeed_ift.checkpoint.placed import Place, PlacedFile, mapped
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


def places(path: Path, within: Place | None = None) -> Any:
    """What a file of ``torch.save`` holds, with a `StoredTensor` in the place of each tensor.

    Args:
        path: of the file.
        within: where in it the archive lies, if it is not all of it.

    Raises:
        UserError: it is damaged.
    """
    try:
        return load_places(path, within)
    except Exception as error:  # noqa: BLE001 - a damaged file raises many kinds
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path} cannot be read ({reason}); take an older checkpoint") from None


def place_in_archive(path: Path, archive: Place) -> StoredTensor:
    """One tensor that was saved alone somewhere in a file.

    Raises:
        UserError: it is damaged, or holds something else.
    """
    found = places(path, archive)
    if not isinstance(found, StoredTensor):
        raise UserError(f"{path} cannot be read (no tensor where one should be); take an older checkpoint")
    return found


def read_tensors(path: Path, content: Mapping[str, Any]) -> LazyTensors:
    """The tensors of one state dict in what `places` found in a file."""
    tensors = {name: value for name, value in content.items() if isinstance(value, StoredTensor)}
    dtypes = {name: value.dtype for name, value in tensors.items()}
    return LazyTensors(dtypes, lambda name: read_tensor(path, tensors[name]))


def read_tensor(path: Path, stored: StoredTensor) -> Tensor:
    """A tensor as it lies in a file: its pages are read by whoever looks at it.

    Raises:
        UserError: the file ends before.
    """
    found = mapped(path, stored.place)
    if stored.place.start % stored.dtype.itemsize:  # archives of others begin anywhere
        found = found.clone()
    return stored.of(found)


class ReservedFile:
    """A file of ``torch.save`` with room for its tensors, which come in any order and from any thread.

    The archive's own checksums are those of the empty room; nothing of torch's looks at them.

    Args:
        staging: folder of a checkpoint that is being written.
        relative: path in it.
        state: what is saved; of its tensors, which may be on no device (``meta``), only shape and dtype. Two levels.

    Raises:
        RunError: it cannot be written.
    """

    def __init__(self, staging: Path, relative: str, state: Mapping[str, Any]) -> None:
        self.relative, self.path = relative, staging / relative
        room = {key: _room(value) if isinstance(value, Mapping) else value for key, value in state.items()}
        with megatron.told_failure(self.path):
            self.path.parent.mkdir(exist_ok=True)
            with torch.serialization.skip_data(), open(self.path, "wb") as file:
                torch.save(room, file)
            found = {
                (key, name): value.place
                for key, tensors in places(self.path).items()
                if isinstance(tensors, Mapping)
                for name, value in tensors.items()
            }
            self._file = PlacedFile(self.path, found, checksum=True)

    def fill(self, key: str, name: str, parts: Iterable[Tensor]) -> None:
        """Write one tensor of the state dict ``key``, which is made of the bytes of some others.

        Raises:
            RunError: it cannot be written.
        """
        with megatron.told_failure(self.path):
            self._file.fill((key, name), parts)

    def finish(self) -> megatron.Files:
        """Bring it down to the disk; what the manifest says of it.

        Raises:
            RunError: it cannot be written.
        """
        with megatron.told_failure(self.path):
            checksum = self._file.finish()
        return {self.relative: described(self.path, checksum)}

    def close(self) -> None:
        """Let go of it, whole or not."""
        self._file.close()


def _room(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Never touched, so no memory is taken."""
    return {name: torch.empty(one.shape, dtype=one.dtype) for name, one in tensors.items()}
