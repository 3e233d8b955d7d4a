"""Which part of which whole tensor this rank holds: weights as Megatron says, the optimizer's state beside them.

The same rectangles are written by one layout and filled by another. `checkpoint.sharded` has the files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mindspeed_ift.checkpoint.sharded import Reader, Rectangle, cut
from mindspeed_ift.mcore import ShardedTensorFactory
from mindspeed_ift.model.build import Qwen3Model
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.training.optimizer import chained

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Of Adam."""
MAIN = "fp32_param"
"""Megatron's name of the weights that the optimizer moves, where the model's have fewer bits."""


@dataclass(frozen=True)
class Part:
    """A run of a rank's parameter, as its place in the whole tensor.

    Attributes:
        key: name of the whole tensor; layers are counted over the model.
        shape: of the whole tensor.
        offset: where the part begins in it.
        size: of the part.
        start: its first element in the parameter, row by row. Gate and up of one matrix are two parts.
        replica: numbers of this copy among those of the pipeline, tensor and data parallel ranks; zeros are the first.
        padded: the rows are a vocabulary's.
    """

    key: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]
    start: int
    replica: tuple[int, ...]
    padded: bool

    def run(self, values: Tensor, start: int, stop: int, prefix: str = "") -> Iterator[Rectangle]:
        """Rectangles of what this part shares with the elements ``start`` to ``stop`` of the parameter.

        Args:
            values: these elements, in any shape; the rectangles are views of them.
            start: first element.
            stop: behind the last.
            prefix: before the key.
        """
        low, high = max(start, self.start), min(stop, self.start + math.prod(self.size))
        flat, at = values.detach().view(-1), low - start
        for offset, size in cut(self.size, low - self.start, high - self.start):
            place = tuple(a + b for a, b in zip(self.offset, offset, strict=True))
            count = math.prod(size)
            yield Rectangle(prefix + self.key, self.shape, place, flat[at : at + count].view(size), self.padded)
            at += count


def parts_of(stages: list[Qwen3Model], groups: Groups) -> dict[Tensor, list[Part]]:
    """Parts of every parameter of this rank, by identity of the parameter."""
    found: dict[Tensor, list[Part]] = {}
    for stage in stages:
        content = stage.sharded_state_dict(
            metadata={"non_homogeneous_layers": True, "dp_cp_group": groups.collection.dp_cp}
        )
        for name, parameter in stage.named_parameters():
            entry = content[name]
            pieces = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
            vocabulary = name.endswith(("word_embeddings.weight", "output_layer.weight"))
            found[parameter] = [_part(piece, parameter, vocabulary) for piece in pieces]
    return found


def _part(piece: Any, parameter: Tensor, vocabulary: bool) -> Part:
    """From Megatron's ShardedTensor, whose data is a view of the parameter."""
    assert piece.data.is_contiguous(), f"{piece.key} is no run of its parameter"
    start = piece.data.storage_offset() - parameter.storage_offset()
    size = (1,) * piece.prepend_axis_num + tuple(piece.local_shape)
    replica = piece.replica_id if isinstance(piece.replica_id, tuple) else (piece.replica_id,)
    return Part(piece.key, tuple(piece.global_shape), tuple(piece.global_offset), size, start, replica, vocabulary)


def weights(
    stages: list[Qwen3Model], groups: Groups, wanted: Callable[[Qwen3Model, str], bool], *, owned: bool
) -> Iterator[Rectangle]:
    """The weights of this rank whose names are wanted; ``owned``: only what no other rank has before it."""
    parts = parts_of(stages, groups)
    for stage in stages:
        for name, parameter in stage.named_parameters():
            for part in parts[parameter] if wanted(stage, name) else []:
                if not owned or not any(part.replica):
                    yield from part.run(parameter, 0, parameter.numel())


@dataclass(frozen=True)
class Moved:
    """What an optimizer of this rank moves: a parameter or, under the distributed optimizer, a run of one.

    Attributes:
        optimizer: torch's.
        parameter: of the model.
        main: what is moved: fp32, of the shape of the parameter or flat.
        start: first element in the parameter.
        shared: other replicas move the same.
    """

    optimizer: torch.optim.Optimizer
    parameter: Tensor
    main: Tensor
    start: int
    shared: bool


def moved(optimizer: Any) -> Iterator[Moved]:
    """All that an optimizer of Megatron's (fp32, bf16, distributed, or several in a chain) moves."""
    for part in chained(optimizer):
        inner = part.optimizer
        if hasattr(part, "shard_fp32_groups"):
            for models, mains in (
                (part.model_float16_groups, part.shard_fp32_from_float16_groups),
                (part.model_fp32_groups, part.shard_fp32_groups),
            ):
                for parameter, main in _pairs(models, mains):
                    start = part._get_model_param_range_map(parameter)["param"].start
                    yield Moved(inner, parameter, main, start, shared=False)
        elif hasattr(part, "fp32_from_float16_groups"):
            for parameter, main in _pairs(part.float16_groups, part.fp32_from_float16_groups):
                yield Moved(inner, parameter, main, 0, shared=True)
            for parameter, main in _pairs(part.fp32_from_fp32_groups, part.fp32_from_fp32_groups):
                yield Moved(inner, parameter, main, 0, shared=True)
        else:
            for group in inner.param_groups:
                for parameter in group["params"]:
                    yield Moved(inner, parameter, parameter, 0, shared=True)


def _pairs(models: list[list[Tensor]], mains: list[list[Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    for ours, theirs in zip(models, mains, strict=True):
        yield from zip(ours, theirs, strict=True)


def optimizer_state(
    stages: list[Qwen3Model], optimizer: Any, groups: Groups, *, planned: bool = False
) -> Iterator[Rectangle]:
    """Moments and main weights that this rank writes.

    Before the first step there are no moments; ``planned`` gives others of their size in their place.
    """
    parts = parts_of(stages, groups)
    for one in moved(optimizer):
        state = one.optimizer.state[one.main]
        tensors = {name: state.get(name, one.main) for name in MOMENTS if planned or name in state}
        if one.parameter.dtype is not torch.float32:
            tensors[MAIN] = one.main
        for part in parts[one.parameter]:
            # Of a run that only this replica moves, the copies are those of other tensor and pipeline ranks.
            if not any(part.replica if one.shared else part.replica[:-1]):
                for name, values in tensors.items():
                    yield from part.run(values, one.start, one.start + values.numel(), f"optimizer.state.{name}.")


def steps_of(optimizer: Any) -> int:
    """Updates that an optimizer of this rank has made; its parameters have all made as many."""
    return max((int(one.optimizer.state[one.main].get("step", 0)) for one in moved(optimizer)), default=0)


def fill_optimizer(stages: list[Qwen3Model], optimizer: Any, groups: Groups, reader: Reader, steps: int) -> None:
    """Restore moments and main weights, however they were split.

    Main weights of a run in fp32 are the weights, which are there already; those of a run in bf16 that were not written
    apart are the weights that were written.

    Args:
        stages: of this rank.
        optimizer: Megatron's.
        groups: of this rank.
        reader: of the checkpoint.
        steps: updates that were made.

    Raises:
        UserError: state of a parameter is missing or of another shape.
    """
    parts = parts_of(stages, groups)
    for one in moved(optimizer):
        wanted = {name: torch.zeros_like(one.main) for name in MOMENTS} if steps else {}
        if wanted:
            one.optimizer.state[one.main] = {"step": torch.tensor(float(steps)), **wanted}
        if one.parameter.dtype is not torch.float32:
            wanted = wanted | {MAIN: one.main}
        for part in parts[one.parameter]:
            for name, values in wanted.items():
                prefix = f"optimizer.state.{name}."
                if name == MAIN and prefix + part.key not in reader:
                    prefix = ""
                for rectangle in part.run(values, one.start, one.start + values.numel(), prefix):
                    reader.fill(rectangle)
