"""One way to read weights: a Hugging Face tensor by its name, whatever folder lies behind, one group of them at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.adapters import flags_of, merge_adapters
from mindspeed_ift.checkpoint.huggingface import Folder, read_training
from mindspeed_ift.checkpoint.names import Stage, experts_of, hugging_face_shapes, stage_entries
from mindspeed_ift.checkpoint.others import is_of_others, manifest_of_others
from mindspeed_ift.checkpoint.stages import Stages, layout_of_files, stages_of_files
from mindspeed_ift.checkpoint.torch_file import LazyTensors
from mindspeed_ift.checkpoint.transforms import Pieces, Transform, from_shards, to_shard
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout


class Source(Protocol):
    """Gives the tensors of a model by their Hugging Face names, to any thread."""

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor, whole, checked to have the shape.

        Raises:
            UserError: missing, of another shape, or its file is damaged.
        """

    def parts(self, name: str, shape: tuple[int, ...]) -> Iterable[Tensor]:
        """As `tensor`, but in parts whose bytes, one after another, are those of the tensor; to be taken at once."""

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor, without reading it.

        Raises:
            UserError: it is missing.
        """

    def together(self, name: str) -> str:
        """The same for tensors that are read together, so that who asks for one should ask for the others next."""


class Opened(NamedTuple):
    """A folder of weights.

    Attributes:
        source: its tensors.
        architecture: of the model.
        facts: its tokenizer's folder, and how the model was trained to be asked, where known.
    """

    source: Source
    architecture: Architecture
    facts: dict[str, Any]


def open_source(
    folder: Path, flag: str = "--load", *, check: bool = True, architecture: Architecture | None = None
) -> Opened:
    """Find out what a folder holds: an ``iter_`` folder, a ``--save`` folder (the newest), or a Hugging Face folder.

    Args:
        folder: of weights.
        flag: that gave it, for the message.
        check: compare the checksum of each file of a checkpoint before it is read.
        architecture: of the model, for a checkpoint without manifest.json, of another toolkit.

    Raises:
        UserError: nothing of the kind, it is damaged, or has tensors that its architecture has not.
    """
    folder = megatron.latest_folder(folder) or Path(folder)
    of_others = is_of_others(folder)
    if of_others and architecture is None:
        raise UserError(
            f"{flag} {folder} is a checkpoint of another toolkit, which does not say what model it is: convert it with"
            " tools/convert_ckpt.py, and give it --hf-cfg-dir"
        )
    if of_others or megatron.read_manifest(folder) is not None:
        checkpoint = Checkpoint(folder, check=check, architecture=architecture)
        if of_others:  # nobody has said which tensors these are
            checkpoint.check()
        return Opened(checkpoint, checkpoint.architecture, checkpoint.manifest)
    if (folder / "config.json").is_file():
        published, source = Architecture.from_hugging_face(folder), Folder(folder)
        source.refuse_others(hugging_face_shapes(published), published.tied)
        return Opened(source, published, {**read_training(folder), "tokenizer": str(folder.resolve())})
    raise UserError(
        f"{flag} {folder} is neither a Hugging Face folder nor a Megatron checkpoint (a --save or iter_ folder with"
        " manifest.json or mp_rank_ folders)"
    )


class _Group(NamedTuple):
    """Hugging Face tensors that one Megatron tensor is made of, and the files that have it."""

    stage: int
    name: str
    parts: tuple[str, ...]
    transform: Transform
    holders: tuple[tuple[int, int], ...]


class _Held(threading.local):
    """What a thread has read last."""

    group: _Group | None = None
    tensors: dict[str, Pieces] = {}


class Checkpoint:
    """A Megatron checkpoint of any layout and format, its adapters merged.

    What is held, for each thread that asks, is one group of tensors: those that one Megatron tensor is made of (of
    experts, those of one layer and expert rank).

    Args:
        folder: an ``iter_`` folder with our manifest.
        base: if it holds adapters only, the weights they were trained on: a Hugging Face folder or a checkpoint.
        check: compare the checksum of each file before it is read.
        architecture: of the model, if the folder has no manifest.

    Raises:
        UserError: no manifest, adapters without their weights, or weights that they do not go with.
    """

    def __init__(
        self,
        folder: Path,
        base: Path | None = None,
        *,
        check: bool = True,
        architecture: Architecture | None = None,
    ) -> None:
        self.folder = Path(folder)
        manifest = megatron.read_manifest(folder)
        if manifest is None and architecture is not None:
            manifest = manifest_of_others(self.folder, architecture)
        if manifest is None:
            raise UserError(f"{folder} has no manifest.json; give a --save folder")
        self.manifest, self.architecture = manifest, Architecture(**manifest["architecture"])
        self._layout, self._stages = layout_of_files(manifest), stages_of_files(manifest)
        self._said_by = "--hf-cfg-dir" if manifest.get("of_others") else "manifest.json"
        self._lora = flags_of(manifest["lora"]) if manifest.get("lora") else None
        self._base: Source | None = None
        if base is not None:
            if self._lora is None:
                raise UserError(f"--lora-load {folder} has no adapters; give the --save folder of a run with adapters")
            self._base, found, _ = open_source(base, "--load-dir", architecture=self.architecture)
            if found != self.architecture:
                raise UserError(
                    f"{folder} was trained on another architecture than that of {base}:"
                    f" {found.difference(self.architecture)}; give --load-dir the weights that it was trained on"
                )
        elif (manifest.get("lora") or {}).get("filtered"):
            raise UserError(
                f"{folder} holds adapters only; merge them into the weights they were trained on: tools/convert_ckpt.py"
                f" --load-dir WEIGHTS --lora-load {folder}"
            )
        self._groups = {part: group for group in self._all_groups() for part in group.parts}
        self._state_dicts, self._lock = Stages(self.folder, manifest, check=check), threading.Lock()
        self._files: dict[int, dict[tuple[int, int], LazyTensors]] = {}
        self._held = _Held()

    def dtype(self, name: str) -> torch.dtype:
        """As `Source.dtype`."""
        group = self._groups[name]
        stage = self._stage(group.stage)[group.holders[0]]
        if group.name not in stage:
            raise UserError(
                f"{self.folder}: the tensor {group.name} is missing from stage {group.stage}; copy it again"
            )
        return stage.dtypes[group.name]

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """As `Source.tensor`."""
        return self._pieces(name, shape).joined()

    def parts(self, name: str, shape: tuple[int, ...]) -> Iterable[Tensor]:
        """As `Source.parts`."""
        return self._pieces(name, shape).rows()

    def _pieces(self, name: str, shape: tuple[int, ...]) -> Pieces:
        group, held = self._groups[name], self._held
        if held.group is not group:
            held.group, held.tensors = None, {}  # let go of one before the next is read
            held.group, held.tensors = group, self._read(group)
        found = held.tensors[name]
        if found.shape != shape:
            raise UserError(
                f"{self.folder}: {group.name} makes a {name} of shape {found.shape}, the architecture says {shape};"
                f" is {self._said_by} that of these files?"
            )
        return found

    def together(self, name: str) -> str:
        """As `Source.together`."""
        return self._groups[name].parts[0]

    def check(self) -> None:
        """Look at the names of all tensors.

        Raises:
            UserError: one is missing, or there for nothing.
        """
        known: dict[int, set[str]] = {}
        for group in self._all_groups():
            known.setdefault(group.stage, set()).add(group.name)
        for number, names in known.items():
            for stage in self._stage(number).values():
                adapters = {one for one in stage if self._lora is not None and ".lora_" in one}
                for name in sorted(names - stage.keys()):
                    raise UserError(f"{self.folder}: the tensor {name} is missing from stage {number}; copy it again")
                for name in sorted(stage.keys() - names - adapters - {"output_layer.weight"}):
                    raise UserError(
                        f"{self.folder}: stage {number} has the tensor {name}, which the architecture of {self._said_by}"
                        " has not; is it that of these files?"
                    )

    def _all_groups(self) -> Iterator[_Group]:
        for number, stage in enumerate(self._stages):
            for rank in range(self._layout.expert):
                experts = experts_of(self.architecture, self._layout, rank)
                for name, parts, transform in stage_entries(self.architecture, stage, experts):
                    if transform.of_experts:
                        yield _Group(number, name, parts, transform, self._holders_of_experts(rank))
                    elif rank == 0 and not (self.architecture.tied and name == "output_layer.weight"):
                        yield _Group(number, name, parts, transform, self._holders())

    def _holders(self) -> tuple[tuple[int, int], ...]:
        """(tensor rank, expert rank) of the files that have the parts of a tensor, in the order of its parts."""
        shards = self._layout.shards()
        return tuple(next(one for one in shards if one[0] == rank) for rank in range(self._layout.tensor))

    def _holders_of_experts(self, expert: int) -> tuple[tuple[int, int], ...]:
        own, shards = self._layout.tensor_of_experts, self._layout.shards()
        return tuple(next(one for one in shards if (one[0] % own, one[1]) == (part, expert)) for part in range(own))

    def _stage(self, number: int) -> dict[tuple[int, int], LazyTensors]:
        """State dicts of a stage by (tensor rank, expert rank), of which only names are held."""
        with self._lock:
            if number not in self._files:
                self._files[number] = {one: self._with_base(one, number) for one in self._layout.shards()}
            return self._files[number]

    def _with_base(self, ranks: tuple[int, int], number: int) -> LazyTensors:
        """The weights of the base get the dtype in which the adapters were trained on them."""
        stage = self._state_dicts.read(ranks, number)
        if self._base is None:
            return stage
        padded = self.manifest["padded_vocab_size"]
        weights = model_shard(self._base, self.architecture, self._stages[number], self._layout, ranks, padded)
        dtype = getattr(torch, self.manifest["dtype"])
        return LazyTensors(
            dict.fromkeys(weights, dtype) | dict(stage.dtypes),
            lambda name: stage[name] if name in stage else weights[name].to(dtype),
        )

    def _read(self, group: _Group) -> dict[str, Pieces]:
        self.dtype(group.parts[0])  # it is there
        stage = self._stage(group.stage)
        shards = [stage[ranks] for ranks in group.holders]
        weights = [shard[group.name] for shard in shards]
        if self._lora is not None:
            weights = merge_adapters(group.name, weights, shards, self._lora)
        values = from_shards(group.transform, weights, self.architecture)
        return dict(zip(group.parts, values, strict=True))


def model_shard(
    source: Source, architecture: Architecture, stage: Stage, layout: Layout, ranks: tuple[int, int], padded_vocab: int
) -> LazyTensors:
    """One rank's Megatron state dict, each tensor made when it is asked for.

    Args:
        source: of the weights.
        architecture: of the model.
        stage: that the rank holds.
        layout: by which it is cut.
        ranks: tensor rank and expert rank.
        padded_vocab: rows of the embedding over all tensor ranks.

    Raises:
        UserError: a tensor is missing; and as `Source.tensor` when one is asked for.
    """
    shapes = hugging_face_shapes(architecture)
    entries = stage_entries(architecture, stage, experts_of(architecture, layout, ranks[1]))
    made = {name: (parts, transform) for name, parts, transform in entries}

    def read(name: str) -> Tensor:
        parts, transform = made[name]
        size = layout.tensor_of_experts if transform.of_experts else layout.tensor
        tensors = [source.tensor(part, shapes[part]) for part in parts]
        place = {"tensor_size": size, "tensor_rank": ranks[0] % size}
        return to_shard(transform, tensors, architecture, **place, padded_vocab=padded_vocab)

    return LazyTensors({name: source.dtype(parts[0]) for name, (parts, _) in made.items()}, read)
