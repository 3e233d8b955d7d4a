"""Hugging Face <-> Megatron, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.adapters import flags_of, merge_adapters
from mindspeed_ift.checkpoint.disk import require_folder, require_space
from mindspeed_ift.checkpoint.huggingface import Folder, read_training, refuse_occupied, write_folder
from mindspeed_ift.checkpoint.names import ALL_EXPERTS, ExpertPart, hugging_face_shapes, stage_entries
from mindspeed_ift.checkpoint.peft_folder import write_peft_folder
from mindspeed_ift.checkpoint.stages import layout_of_files, placement, read_stage, stages_of
from mindspeed_ift.checkpoint.transforms import Transform, from_shards, to_shard
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout, layout_of, padded_vocab_size
from mindspeed_ift.data.template_certificate import KEY as CERTIFICATE
from mindspeed_ift.data.template_certificate import check_certificate, check_tokenizer
from mindspeed_ift.data.tokenizer import load_tokenizer

TRAINING_FACTS = ("prompt_type", "template_row", "template_sha256", CERTIFICATE, "enable_thinking")
"""What of a checkpoint's manifest says how its model was trained to be asked."""


def hugging_face_shard(
    folder: Path,
    architecture: Architecture,
    *,
    layers: range,
    first_stage: bool,
    last_stage: bool,
    tensor_size: int,
    tensor_rank: int,
    padded_vocab: int,
    experts: ExpertPart = ALL_EXPERTS,
) -> dict[str, Tensor]:
    """One rank's Megatron state dict from a Hugging Face folder, reading only what the rank needs.

    Raises:
        UserError: a tensor is missing or has another shape, a file is damaged.
    """
    source, shapes = Folder(folder), hugging_face_shapes(architecture)
    return {
        name: to_shard(
            transform,
            [source.tensor(part, shapes[part]) for part in parts],
            architecture,
            tensor_size=experts.tensor_size if transform.of_experts else tensor_size,
            tensor_rank=experts.tensor_rank if transform.of_experts else tensor_rank,
            padded_vocab=padded_vocab,
        )
        for name, parts, transform in stage_entries(
            architecture,
            layers,
            first_stage=first_stage,
            last_stage=last_stage,
            experts=experts.numbers(architecture.num_experts),
        )
    }


def hugging_face_tensors(folder: Path) -> tuple[Architecture, dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """The tensors of a Megatron checkpoint under their Hugging Face names, a stage at a time, adapters merged.

    Args:
        folder: an ``iter_`` folder with our manifest.

    Returns:
        Architecture, manifest, and (name, tensor) in the order of the model.

    Raises:
        UserError: no manifest, or a damaged file.
    """
    manifest = megatron.read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} has no manifest.json; only checkpoints of this toolkit can be converted yet")
    if (manifest.get("lora") or {}).get("filtered"):
        raise UserError(
            f"{folder} holds adapters only; merge them into the weights they were trained on: tools/convert_ckpt.py"
            f" --load-dir WEIGHTS --lora-load {folder}"
        )
    architecture = Architecture(**manifest["architecture"])
    return architecture, manifest, _merged(folder, architecture, manifest)


def adapted_tensors(adapters: Path, base: Path) -> tuple[Architecture, dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """As `hugging_face_tensors`, of a checkpoint that holds adapters only and the weights they were trained on.

    Args:
        adapters: an ``iter_`` folder.
        base: a Hugging Face folder, or an ``iter_`` folder of the same layout.

    Raises:
        UserError: they do not go together, or a file is damaged.
    """
    manifest = megatron.read_manifest(adapters)
    if manifest is None or not manifest.get("lora"):
        raise UserError(f"--lora-load {adapters} has no adapters; give the --save folder of a run with adapters")
    architecture, of_base = Architecture(**manifest["architecture"]), megatron.read_manifest(base)
    found = Architecture(**of_base["architecture"]) if of_base else Architecture.from_hugging_face(base)
    if found != architecture:
        raise UserError(f"{adapters} was trained on another architecture than that of {base}")
    if of_base and placement(of_base) != placement(manifest):
        raise UserError(f"{base} has another layout than {adapters}; give its Hugging Face folder instead")
    return architecture, manifest, _merged(adapters, architecture, manifest, base)


def _shards(
    folder: Path, architecture: Architecture, manifest: dict[str, Any], number: int, base: Path | None
) -> dict[tuple[int, int], dict[str, Tensor]]:
    """State dicts of a stage by (tensor rank, expert rank); those of ``base`` with the adapters of ``folder``.

    The weights of ``base`` get the dtype in which the adapters were trained on them.
    """
    layout, stages = layout_of_files(manifest), stages_of(manifest)
    shards = {ranks: read_stage(folder, manifest, ranks, number) for ranks in layout.shards()}
    if base is None:
        return shards
    if megatron.read_manifest(base) is not None:
        weights = {ranks: read_stage(base, manifest, ranks, number) for ranks in layout.shards()}
    else:
        weights = {
            (rank, expert): hugging_face_shard(
                base,
                architecture,
                layers=range(*stages[number]),
                first_stage=number == 0,
                last_stage=number == len(stages) - 1,
                tensor_size=layout.tensor,
                tensor_rank=rank,
                padded_vocab=manifest["padded_vocab_size"],
                experts=ExpertPart.of(layout, rank, expert),
            )
            for rank, expert in layout.shards()
        }
    dtype = getattr(torch, manifest["dtype"])
    return {
        ranks: {name: weight.to(dtype) for name, weight in weights[ranks].items()} | shard
        for ranks, shard in shards.items()
    }


def _sharing(
    transform: Transform, shards: dict[tuple[int, int], dict[str, Tensor]], layout: Layout
) -> list[list[dict[str, Tensor]]]:
    """The state dicts that share a tensor, in the order of its parts; of experts a list for each expert rank."""
    if not transform.of_experts:
        return [[next(one for ranks, one in shards.items() if ranks[0] == rank) for rank in range(layout.tensor)]]
    own = layout.tensor_of_experts
    return [
        [next(one for (rank, at), one in shards.items() if (rank % own, at) == (part, expert)) for part in range(own)]
        for expert in range(layout.expert)
    ]


def _merged(
    folder: Path, architecture: Architecture, manifest: dict[str, Any], base: Path | None = None
) -> Iterator[tuple[str, Tensor]]:
    stages, layout = stages_of(manifest), layout_of_files(manifest)
    lora = flags_of(manifest["lora"]) if manifest.get("lora") else None
    for number, (start, stop) in enumerate(stages):
        shards = _shards(folder, architecture, manifest, number, base)
        first, last = number == 0, number == len(stages) - 1
        for name, parts, transform in stage_entries(
            architecture, range(start, stop), first_stage=first, last_stage=last
        ):
            if architecture.tied and name == "output_layer.weight":
                continue  # a copy of the embedding
            values: list[Tensor] = []
            for sharing in _sharing(transform, shards, layout):
                if name not in sharing[0]:
                    raise UserError(f"{folder}: the tensor {name} is missing from stage {number}")
                weights = [shard[name] for shard in sharing]
                if lora is not None:
                    weights = merge_adapters(name, weights, sharing, lora)
                values += from_shards(transform, weights, architecture)
            yield from zip(parts, values, strict=True)


def whole_model(folder: Path) -> tuple[Architecture, dict[str, Any], dict[str, Tensor]]:
    """The model of an ``iter_`` folder as one rank's Megatron state dict, unpadded, whatever its layout.

    Returns:
        Architecture, manifest, and the state dict of a model without parallelism.
    """
    architecture, manifest, tensors = hugging_face_tensors(folder)
    parts = dict(tensors)
    layers = range(architecture.num_layers)
    entries = stage_entries(architecture, layers, first_stage=True, last_stage=True)
    state = {
        name: to_shard(
            transform,
            [parts.pop(part) for part in names],  # each has one place; let go of it
            architecture,
            tensor_size=1,
            tensor_rank=0,
            padded_vocab=architecture.vocab_size,
        )
        for name, names, transform in entries
    }
    return architecture, manifest, state


def convert(config: ConvertConfig) -> str:
    """Convert as the flags say.

    Returns:
        One line that says what was written.

    Raises:
        UserError: source or target cannot be used.
    """
    if config.load_dir is None or config.save_dir is None:
        raise UserError("--load-dir and --save-dir are both needed")
    refuse_occupied(config.save_dir)
    require_folder(config.save_dir, "--save-dir")
    if config.save_lora_to_hf:
        flag, source = ("--lora-load", config.lora_load) if config.lora_load else ("--load-dir", config.load_dir)
        base = config.hf_cfg_dir or (config.load_dir if config.load_model_type == "hf" else None)
        return write_peft_folder(_newest(flag, source), config.save_dir, str(base) if base else None)
    kinds = (config.load_model_type, config.save_model_type)
    if kinds == ("mg", "hf") or config.lora_load is not None:
        return _to_hugging_face(config, config.load_dir, config.save_dir)
    if kinds == ("hf", "mg"):
        return _to_megatron(config, config.load_dir, config.save_dir)
    raise UserError(f"--load-model-type {kinds[0]} --save-model-type {kinds[1]} is not supported yet; give hf and mg")


def _to_hugging_face(config: ConvertConfig, source: Path, target: Path) -> str:
    folder = _newest("--load-dir", source) if config.load_model_type == "mg" else source
    if config.lora_load is None:
        architecture, manifest, tensors = hugging_face_tensors(folder)
    else:
        adapters = _newest("--lora-load", config.lora_load)
        architecture, manifest, tensors = adapted_tensors(adapters, folder)
        for name in ("lora_r", "lora_alpha", "lora_target_modules"):
            given, trained = getattr(config, name), getattr(flags_of(manifest["lora"]), name)
            if isinstance(given, tuple):  # in whatever order
                given, trained = sorted(given), sorted(trained)
            if given and given != trained:
                raise UserError(f"--{name.replace('_', '-')} {given} is not what {adapters} was trained with")
    if config.hf_cfg_dir is not None and Architecture.from_hugging_face(config.hf_cfg_dir) != architecture:
        raise UserError(f"--hf-cfg-dir {config.hf_cfg_dir} describes another architecture than {folder}")
    tokenizer = config.hf_cfg_dir or (Path(manifest["tokenizer"]) if manifest.get("tokenizer") else None)
    _check_certificate(manifest, tokenizer, folder)
    content = architecture.to_hugging_face(manifest["dtype"])
    require_space(target, _bytes_of_weights(architecture, manifest["dtype"]), "--save-dir")
    write_folder(target, tensors, content, tokenizer, {key: manifest[key] for key in TRAINING_FACTS if key in manifest})
    told = (
        f"tokenizer from {tokenizer}"
        if tokenizer is not None
        else "without a tokenizer: none is known, nor --hf-cfg-dir given"
    )
    return f"{folder} -> {target} (Hugging Face, {manifest['dtype']}, {told})"


def _check_certificate(manifest: dict[str, Any], tokenizer: Path | None, folder: Path) -> None:
    """Refuse to export with a tokenizer that is not that of training."""
    certificate = manifest.get(CERTIFICATE)
    check_certificate(certificate, manifest.get("template_sha256"), str(folder))
    if certificate and tokenizer is not None and (tokenizer / "tokenizer.json").is_file():
        check_tokenizer(certificate, load_tokenizer(tokenizer), str(folder))


def _newest(flag: str, source: Path) -> Path:
    folder = megatron.latest_folder(source) or source
    if megatron.read_manifest(folder) is None:
        raise UserError(f"{flag} {source} holds no {megatron.TRACKER} and no manifest.json; give a --save folder")
    return folder


def _to_megatron(config: ConvertConfig, source: Path, target: Path) -> str:
    architecture = Architecture.from_hugging_face(source)
    layout = _target_layout(config, architecture)
    stages = layout.stage_layers(architecture.num_layers)
    padded = padded_vocab_size(architecture.vocab_size, config.make_vocab_size_divisible_by, layout.tensor)
    require_space(target, Folder(source).size, "--save-dir")
    staging = megatron.begin_save(target, 0)
    try:
        dtype, files = _write_stages(staging, source, architecture, layout, padded)
    except BaseException:
        megatron.abandon_save(staging)
        raise
    manifest = {
        "architecture": asdict(architecture),
        "layout": megatron.describe_layout(layout),
        "stage_layers": [[stage.start, stage.stop] for stage in stages],
        "padded_vocab_size": padded,
        "dtype": dtype,
        "distributed_optimizer": False,
        "iteration": 0,
        "consumed_samples": 0,
        "tokenizer": str(source.resolve()),
        **dict.fromkeys(TRAINING_FACTS),
        **read_training(source),
    }
    megatron.commit(staging, target, 0, manifest, files)
    return f"{source} -> {target} (Megatron, TP {layout.tensor}, PP {layout.pipeline}{_told(layout)}, {dtype})"


def _told(layout: Layout) -> str:
    return f", EP {layout.expert}, ETP {layout.tensor_of_experts}" if layout.expert > 1 else ""


def _target_layout(config: ConvertConfig, architecture: Architecture) -> Layout:
    """The layout to write, on as few ranks as hold one copy.

    Raises:
        UserError: it does not fit the model.
    """
    tensor, pipeline, expert = (
        config.target_tensor_parallel_size,
        config.target_pipeline_parallel_size,
        config.target_expert_parallel_size,
    )
    own = config.expert_tensor_parallel_size or tensor
    layout = layout_of(config.target_layout, pipeline * math.lcm(tensor, own * expert))
    for count in (architecture.num_attention_heads, architecture.num_query_groups, architecture.ffn_hidden_size):
        if count % tensor:
            raise UserError(
                f"--target-tensor-parallel-size {tensor} does not divide {count} heads or columns; choose a divisor"
            )
    if architecture.num_experts % expert or (expert > 1 and not architecture.num_experts):
        raise UserError(
            f"--target-expert-parallel-size {expert} does not divide {architecture.num_experts} experts; choose a divisor"
        )
    if architecture.moe_ffn_hidden_size % own:
        raise UserError(
            f"--expert-tensor-parallel-size {own} does not divide {architecture.moe_ffn_hidden_size} columns of an expert;"
            " choose a divisor"
        )
    return layout


def _bytes_of_weights(architecture: Architecture, dtype: str) -> int:
    sizes = [math.prod(shape) for shape in hugging_face_shapes(architecture).values()]
    return sum(sizes) * getattr(torch, dtype).itemsize


def _write_stages(
    staging: Path, source: Path, architecture: Architecture, layout: Layout, padded: int
) -> tuple[str, megatron.Files]:
    """Write every rank's shard; returns the dtype of the weights, and what is said of the files."""
    dtype, files = "", {}
    stages = layout.stage_layers(architecture.num_layers)
    keys = megatron.model_keys(len(stages) // layout.pipeline)
    for place in range(layout.pipeline):
        for rank, expert in layout.shards():
            state: dict[str, Any] = {"checkpoint_version": 3.0, "iteration": 0}
            for key, number in zip(keys, range(place, len(stages), layout.pipeline), strict=True):
                state[key] = hugging_face_shard(
                    source,
                    architecture,
                    layers=stages[number],
                    first_stage=number == 0,
                    last_stage=number == len(stages) - 1,
                    tensor_size=layout.tensor,
                    tensor_rank=rank,
                    padded_vocab=padded,
                    experts=ExpertPart.of(layout, rank, expert),
                )
            dtype = str(next(iter(state[keys[0]].values())).dtype).removeprefix("torch.")
            files |= megatron.write_shard(
                staging, rank, place, layout.pipeline, state, expert_rank=megatron.expert_rank(layout, expert)
            )
    return dtype, files
