"""Checkpoints of Megatron and MindSpeed-LLM, which have no manifest: what their folders, names and shapes say instead.

Their files are those of the ``torch`` format; names of tensors are Megatron's for local layers, for those of Transformer
Engine, and for experts one by one or grouped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.names import EMBEDDING, FINAL_NORM
from mindspeed_ift.checkpoint.sharded import RENAMED
from mindspeed_ift.checkpoint.torch_file import LazyTensors, places
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout

_FOLDER = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3}))?(?:_(\d{3}))?")
_LAYER = re.compile(r"(decoder\.layers\.)(\d+)(\..+)")
_EXPERT = re.compile(
    r"(.+\.mlp\.experts\.)(?:local_experts\.(\d+)\.linear_fc([12])\.weight|linear_fc([12])\.weight(\d+))"
)


def is_of_others(folder: Path) -> bool:
    """Whether it is an ``iter_`` folder of theirs."""
    return megatron.read_manifest(folder) is None and bool(_ranks(folder))


def manifest_of_others(folder: Path, architecture: Architecture) -> dict[str, Any]:
    """What a manifest of ours would say of a checkpoint of weights.

    Args:
        folder: an ``iter_`` folder, or ``release``.
        architecture: of the model, which nothing there tells for sure.

    Raises:
        UserError: it is damaged, not complete, or has what is not converted here.
    """
    found = _ranks(folder)
    first = places(found[min(found)])
    chunks = sum(re.fullmatch(r"model\d*", key) is not None for key in first)
    keys = megatron.model_keys(chunks)
    if not chunks or not all(isinstance(first.get(key), Mapping) for key in keys):
        raise UserError(
            f"{found[min(found)]} holds no model: no {keys[0] if chunks else 'model'} is in it; copy it again"
        )
    layout = _layout(folder, found, keys)
    stages: list[list[int]] = []
    for number in range(layout.pipeline * chunks):
        place = megatron.shard_path(layout, 0, number % layout.pipeline)
        tensors = places(folder / place)[keys[number // layout.pipeline]]
        _refuse_adapters(folder, tensors)
        start = stages[-1][1] if stages else 0
        stages.append([start, start + len(_layers(tensors))])
    if FINAL_NORM.megatron not in tensors:
        raise UserError(
            f"{folder}: the last stage has no {FINAL_NORM.megatron}; checkpoints of --schedules-method dualpipev are not"
            " read: convert without it"
        )
    if stages[-1][1] != architecture.num_layers:
        raise UserError(
            f"{folder} has {stages[-1][1]} layers, its config.json {architecture.num_layers}; give the --hf-cfg-dir of"
            " this model"
        )
    embedding = first[keys[0]][EMBEDDING.megatron]
    return {
        "format": "torch",
        "of_others": True,
        "weights_only": True,
        "architecture": asdict(architecture),
        "layout": megatron.describe_layout(layout),
        "stage_layers": stages,
        "padded_vocab_size": embedding.shape[0] * layout.tensor,
        "dtype": str(embedding.dtype).removeprefix("torch."),
        "distributed_optimizer": False,
        "iteration": 0,
    }


def own_names(tensors: LazyTensors) -> LazyTensors:
    """A stage's state dict of theirs, by the names that the same stage has here.

    Layers are counted without those that do nothing (``--noop-layers``), experts are put together.
    """
    layers = {layer: number for number, layer in enumerate(_layers(tensors))}
    read: dict[str, Callable[[], Tensor]] = {}
    dtypes: dict[str, torch.dtype] = {}
    experts: dict[str, dict[int, str]] = {}
    for name, dtype in tensors.dtypes.items():
        if name.endswith("_extra_state"):  # of quantized layers; of others it says nothing
            continue
        here, layer = name, _LAYER.fullmatch(name)
        if layer is not None:
            here = f"{layer[1]}{layers[int(layer[2])]}{RENAMED.get(layer[3], layer[3])}"
        expert = _EXPERT.fullmatch(here)
        if expert is not None:
            here = f"{expert[1]}weight{expert[3] or expert[4]}"
            experts.setdefault(here, {})[int(expert[2] or expert[5])] = name
        read[here], dtypes[here] = (lambda name=name: tensors[name]), dtype
    for here, names in experts.items():
        read[here] = lambda here=here, names=names: _together(here, [tensors[names[one]] for one in sorted(names)])
    return LazyTensors(dtypes, lambda name: read[name]())


def _together(name: str, each: list[Tensor]) -> Tensor:
    """Experts as Megatron's grouped ones lie in memory: transposed, one after another."""
    if name.endswith("1"):
        return torch.stack([one.T for one in each]).view(each[0].shape[1], -1)
    return torch.cat([one.T for one in each])


def _ranks(folder: Path) -> dict[tuple[int, ...], Path]:
    """The numbers in the names of the folders that have a model, and the files."""
    matches = (
        (_FOLDER.fullmatch(path.parent.name), path) for path in Path(folder).glob(f"mp_rank_*/{megatron.MODEL_FILE}")
    )
    return {tuple(int(one) for one in match.groups() if one is not None): path for match, path in matches if match}


def _layout(folder: Path, found: Mapping[tuple[int, ...], Path], keys: list[str]) -> Layout:
    """By which the files are cut; experts are shared by the tensor ranks, or where there are fewer files not."""
    tensor, pipeline, expert = _sizes(folder, found, keys)
    there = {str(path.relative_to(folder)) for path in found.values()}
    shared, whole = (Layout(tensor, pipeline, expert=expert, expert_tensor=own) for own in (tensor, 1))
    for layout in (shared, whole):
        if _names(layout) == there:
            return layout
    missing = min(_names(shared) - there, default="one of its files")
    raise UserError(f"{folder / missing} is missing, by the names of the others; copy it again")


def _names(layout: Layout) -> set[str]:
    return {
        megatron.shard_path(layout, rank, place, number)
        for place in range(layout.pipeline)
        for rank, number in layout.shards()
    }


def _sizes(folder: Path, found: Mapping[tuple[int, ...], Path], keys: list[str]) -> tuple[int, int, int]:
    """Tensor, pipeline, expert parallel size; one number beside the tensor rank is that of whichever is split."""
    if len({len(numbers) for numbers in found}) != 1:
        raise UserError(f"{folder}: the names of its mp_rank folders do not go together; is it one checkpoint?")
    sizes = [1 + max(one) for one in zip(*found, strict=True)]
    if len(sizes) == 3:
        return sizes[0], sizes[1], sizes[2]
    if len(sizes) == 1:
        return sizes[0], 1, 1
    last = places(found[max(found)])  # every expert rank has the embedding, of the pipeline ranks only the first
    embeds = any(EMBEDDING.megatron in last.get(key, {}) for key in keys)
    return (sizes[0], 1, sizes[1]) if embeds else (sizes[0], sizes[1], 1)


def _layers(tensors: Mapping[str, Any]) -> list[int]:
    return sorted({int(match[2]) for name in tensors if (match := _LAYER.fullmatch(name))})


def _refuse_adapters(folder: Path, tensors: Mapping[str, Any]) -> None:
    for name in tensors:
        if ".lora_" in name or "_lora_" in name or ".base_layer." in name:
            raise UserError(
                f"{folder} has adapters of another toolkit ({name}); merge them with the toolkit that trained them"
            )
