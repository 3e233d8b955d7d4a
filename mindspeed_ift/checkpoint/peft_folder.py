"""Adapters of a checkpoint -> the folder that PEFT loads onto the Hugging Face model they were trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.adapters import flags_of
from mindspeed_ift.checkpoint.huggingface import appearing, refuse_occupied
from mindspeed_ift.checkpoint.names import stage_entries
from mindspeed_ift.checkpoint.stages import Stages, layout_of_files, stages_of_files
from mindspeed_ift.checkpoint.transforms import Transform, from_shards
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.lora import LoraFlags

_PREFIX = "base_model.model."
_ROWS_SPLIT = ("linear_proj", "linear_fc2")
"""Their inputs are split over the tensor ranks, so their A is; of the others it is their B."""


def write_peft_folder(checkpoint: Path, target: Path, base: str | None) -> str:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``; the folder appears whole or not at all.

    Query, key and value (gate and up) share one A here and have one each in PEFT: it is written once for each.

    Args:
        checkpoint: an ``iter_`` folder with adapters, with or without the weights they belong to.
        target: must not exist, or be empty.
        base: the model they were trained on, as PEFT is to find it.

    Returns:
        One line that says what was written.

    Raises:
        UserError: no adapters, or some that PEFT has no place for; the folder is not empty, a file is damaged.
        RunError: it cannot be written.
    """
    manifest = megatron.read_manifest(checkpoint)
    if manifest is None or not manifest.get("lora"):
        raise UserError(f"{checkpoint} has no adapters; give the --save folder of a run with adapters")
    lora = flags_of(manifest["lora"])
    if lora.lora_modules_to_save:
        raise UserError(
            f"{checkpoint} has modules that were trained whole ({' '.join(lora.lora_modules_to_save)}) beside its"
            " adapters; merge it instead, without --save-lora-to-hf"
        )
    refuse_occupied(target)  # before the files are read, which takes its time
    tensors = _tensors(checkpoint, manifest, lora)
    modules = sorted({name.removesuffix(".weight").rsplit(".", 2)[-2] for name in tensors if "lora_A" in name})
    with appearing(target) as staging:
        save_file(tensors, str(staging / "adapter_model.safetensors"), metadata={"format": "pt"})
        content = json.dumps(_config(lora, modules, base), indent=2) + "\n"
        (staging / "adapter_config.json").write_text(content, encoding="utf-8")
    return f"{checkpoint} -> {target} (PEFT adapters of {', '.join(modules)}, rank {lora.lora_r})"


def _config(lora: LoraFlags, modules: Sequence[str], base: str | None) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.lora_r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": 0.0,
        "target_modules": list(modules),
        "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora,
        "bias": "none",
        "inference_mode": True,
    }


def _tensors(checkpoint: Path, manifest: dict[str, Any], lora: LoraFlags) -> dict[str, Tensor]:
    architecture, layout = Architecture(**manifest["architecture"]), layout_of_files(manifest)
    tensors: dict[str, Tensor] = {}
    stages = Stages(checkpoint, manifest)
    for number, stage in enumerate(stages_of_files(manifest)):
        shards = [stages.read((rank, 0), number) for rank in range(layout.tensor)]
        taken = set()
        for name, parts, transform in stage_entries(architecture, stage._replace(first=False, last=False)):
            prefix = name.removesuffix("weight")
            if f"{prefix}lora_A" not in shards[0]:
                continue
            taken |= {key for key in shards[0] if key.startswith(f"{prefix}lora_")}
            split = prefix.rstrip(".").endswith(_ROWS_SPLIT)
            tensors |= _of_module(prefix, parts, transform, shards, architecture, split)
        left = {key for key in shards[0] if ".lora_" in key} - taken
        if left:
            raise UserError(
                f"{checkpoint} has adapters that PEFT has no place for ({min(left)}); merge it instead, without"
                " --save-lora-to-hf"
            )
    assert lora.use_dora == any("magnitude" in name for name in tensors)
    return tensors


def _of_module(
    prefix: str,
    parts: Sequence[str],
    transform: Transform,
    shards: Sequence[Mapping[str, Tensor]],
    architecture: Architecture,
    split: bool,
) -> dict[str, Tensor]:
    """The adapter of one layer under the names of the Hugging Face layers it is made of."""

    def of(factor: str) -> list[Tensor]:
        return [shard[f"{prefix}lora_{factor}"] for shard in shards]

    def rows(values: list[Tensor]) -> list[Tensor]:
        """Of each Hugging Face layer its rows; where inputs are split every tensor rank has all of them."""
        return [values[0]] if split else [one.joined() for one in from_shards(transform, values, architecture)]

    first = torch.cat(of("A"), 1) if split else of("A")[0]
    tensors = {}
    lengths = rows([one[:, None] for one in of("magnitude")]) if f"{prefix}lora_magnitude" in shards[0] else None
    for place, (part, second) in enumerate(zip(parts, rows(of("B")), strict=True)):
        layer = _PREFIX + part.removesuffix(".weight")
        tensors[f"{layer}.lora_A.weight"] = first.clone()
        tensors[f"{layer}.lora_B.weight"] = second.contiguous()
        if lengths is not None:
            tensors[f"{layer}.lora_magnitude_vector"] = lengths[place].flatten().contiguous()
    return tensors
