"""The weights of a checkpoint stage by stage, in whichever format: by the files of a layout, or layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mindspeed_ift.checkpoint import index, megatron, sharded
from mindspeed_ift.checkpoint.names import Stage, stages_of
from mindspeed_ift.checkpoint.others import own_names
from mindspeed_ift.checkpoint.torch_file import LazyTensors, places, read_tensors
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout


def stages_of_files(manifest: dict[str, Any]) -> list[Stage]:
    """Layers that lie in the same files; where nothing is bound to a layout, one after the other."""
    if manifest.get("format") == index.FORMAT:
        return stages_of([range(layer, layer + 1) for layer in range(manifest["architecture"]["num_layers"])])
    return stages_of([range(*layers) for layers in manifest["stage_layers"]])


def layout_of_files(manifest: dict[str, Any]) -> Layout:
    """By which the files are cut."""
    return Layout() if manifest.get("format") == index.FORMAT else megatron.layout_of_manifest(manifest)


class Stages:
    """The state dicts of a checkpoint's stages, each tensor read when it is asked for.

    Args:
        folder: an ``iter_`` folder.
        manifest: of it.
        check: compare the checksum of each file before it is read.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], *, check: bool = True) -> None:
        self._folder, self._manifest, self._check = folder, manifest, check
        self._layout, self._stages = layout_of_files(manifest), stages_of_files(manifest)
        self._reader: sharded.Reader | None = None
        self._shards: dict[str, dict[str, Any]] = {}

    def read(self, ranks: tuple[int, int], number: int) -> LazyTensors:
        """Of a stage, which may be one of several of its pipeline rank, what a tensor and an expert rank has.

        Raises:
            UserError: a file is missing or damaged.
        """
        folder, layout = self._folder, self._layout
        if self._manifest.get("format") == index.FORMAT:
            self._reader = self._reader or sharded.Reader(folder, check=self._check)
            return self._reader.stage(self._stages[number])
        place = megatron.shard_path(layout, ranks[0], number % layout.pipeline, ranks[1])
        path = folder / place
        if place not in self._shards:
            self._shards[place] = places(megatron.checked_file(folder, place, checksum=self._check))
        shard = self._shards[place]
        key = megatron.model_keys(len(self._stages) // layout.pipeline)[number // layout.pipeline]
        if key not in shard:
            raise UserError(
                f"{folder} has no {key} in the file of tensor rank {ranks[0]}; it is not as its manifest says"
            )
        tensors = read_tensors(path, shard[key])
        return own_names(tensors) if self._manifest.get("of_others") else tensors
