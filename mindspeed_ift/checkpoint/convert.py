"""Hugging Face <-> Megatron, tensor by tensor."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.adapters import flags_of
from mindspeed_ift.checkpoint.disk import require_folder, require_space
from mindspeed_ift.checkpoint.huggingface import Lazy, refuse_occupied, write_folder
from mindspeed_ift.checkpoint.names import hugging_face_shapes
from mindspeed_ift.checkpoint.others import is_of_others
from mindspeed_ift.checkpoint.peft_folder import write_peft_folder
from mindspeed_ift.checkpoint.serving import answers_end
from mindspeed_ift.checkpoint.source import Checkpoint, Opened, Source, open_source
from mindspeed_ift.checkpoint.write import Target, write_weights
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout, layout_of, padded_vocab_size
from mindspeed_ift.data.template_certificate import KEY as CERTIFICATE
from mindspeed_ift.data.template_certificate import check_certificate, check_tokenizer
from mindspeed_ift.data.tokenizer import load_tokenizer

TRAINING_FACTS = ("prompt_type", "template_row", "template_sha256", CERTIFICATE, "enable_thinking")
"""What of a checkpoint's manifest says how its model was trained to be asked."""


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
    folder, opened = _open(config, config.load_dir)
    if config.hf_cfg_dir is not None:
        wanted = Architecture.from_hugging_face(config.hf_cfg_dir)
        if wanted != opened.architecture:
            told = wanted.difference(opened.architecture)
            raise UserError(
                f"--hf-cfg-dir {config.hf_cfg_dir} describes another architecture than {folder}: {told};"
                " give that of this model"
            )
    if isinstance(opened.source, Checkpoint):
        opened.source.check()
    write = _to_hugging_face if config.save_model_type == "hf" else _to_megatron
    with _comparing(opened.source, config.workers) as settled:
        return f"{folder} -> {config.save_dir} ({write(config, folder, opened, config.save_dir, settled)})"


@contextlib.contextmanager
def _comparing(source: Source, workers: int) -> Iterator[Callable[[], None]]:
    """Compare the checksums of the source's files while they are converted.

    Yields:
        What waits for the outcome.

    Raises:
        UserError: by what was yielded, if a file is not what was written.
    """
    if not isinstance(source, Checkpoint):
        yield lambda: None
        return
    if (reason := megatron.damage(source.folder)) is not None:
        raise UserError(f"{reason}; take an older checkpoint")
    with ThreadPoolExecutor(workers, thread_name_prefix="checksum") as pool:
        told = [pool.submit(megatron.changed, source.folder, [name]) for name in source.manifest.get("files", {})]

        def settle() -> None:
            for one in told:
                if reason := one.result():
                    raise UserError(f"{reason}; take an older checkpoint")

        try:
            yield settle
        finally:
            for one in told:
                one.cancel()


def _open(config: ConvertConfig, source: Path) -> tuple[Path, Opened]:
    """The folder whose weights are taken, and what it holds."""
    if config.lora_load is None:
        folder = _newest("--load-dir", source, others=True) if config.load_model_type == "mg" else source
        if config.load_model_type == "hf" and not (source / "config.json").is_file():
            raise UserError(f"{source / 'config.json'} is missing: --load-dir is no Hugging Face folder; give one")
        architecture = Architecture.from_hugging_face(config.hf_cfg_dir) if config.hf_cfg_dir else None
        return folder, open_source(folder, "--load-dir", check=False, architecture=architecture)
    adapters = _newest("--lora-load", config.lora_load)
    base = _newest("--load-dir", source, others=True) if config.load_model_type == "mg" else source
    checkpoint = Checkpoint(adapters, base, check=False)
    trained = flags_of(checkpoint.manifest["lora"])
    for name in ("lora_r", "lora_alpha", "lora_target_modules"):
        given, found = getattr(config, name), getattr(trained, name)
        if isinstance(given, tuple):  # in whatever order
            given, found = sorted(given), sorted(found)
        if given and given != found:
            raise UserError(f"--{name.replace('_', '-')} {given} is not what {adapters} was trained with; leave it out")
    return base, Opened(checkpoint, checkpoint.architecture, checkpoint.manifest)


def _to_hugging_face(
    config: ConvertConfig, folder: Path, opened: Opened, target: Path, settled: Callable[[], None]
) -> str:
    known = opened.facts.get("tokenizer")
    tokenizer = config.hf_cfg_dir or (Path(known) if known else None)
    _check_certificate(opened.facts, tokenizer, folder)
    write_hugging_face(target, opened, tokenizer, workers=config.workers, settled=settled)
    told = (
        f"tokenizer from {tokenizer}"
        if tokenizer is not None
        else "without a tokenizer: none is known, nor --hf-cfg-dir given"
    )
    return f"Hugging Face, {_dtype(opened)}, {told}"


def write_hugging_face(
    target: Path,
    opened: Opened,
    tokenizer: Path | None,
    flag: str = "--save-dir",
    *,
    workers: int = 1,
    settled: Callable[[], None] = lambda: None,
) -> None:
    """Write a Hugging Face folder, tensor by tensor; arguments as of `write_folder`.

    Raises:
        UserError: as the source.
        RunError: there is no room, or it cannot be written.
    """
    require_space(target, _bytes_of_weights(opened), flag)
    shapes, source = hugging_face_shapes(opened.architecture), opened.source
    tensors = [
        Lazy(name, source.dtype(name), shape, partial(source.parts, name, shape), source.together(name))
        for name, shape in shapes.items()
    ]
    training = {key: opened.facts[key] for key in TRAINING_FACTS if key in opened.facts}
    content = {**opened.architecture.to_hugging_face(_dtype(opened)), **answers_end(opened.facts, tokenizer)}
    write_folder(target, tensors, content, tokenizer, training, workers=workers, settled=settled)


def _dtype(opened: Opened) -> str:
    return str(opened.source.dtype("model.embed_tokens.weight")).removeprefix("torch.")


def _check_certificate(manifest: dict[str, Any], tokenizer: Path | None, folder: Path) -> None:
    """Refuse to export with a tokenizer that is not that of training."""
    certificate = manifest.get(CERTIFICATE)
    check_certificate(certificate, manifest.get("template_sha256"), str(folder))
    if certificate and tokenizer is not None and (tokenizer / "tokenizer.json").is_file():
        check_tokenizer(certificate, load_tokenizer(tokenizer), str(folder))


def _newest(flag: str, source: Path, others: bool = False) -> Path:
    """The newest checkpoint of a folder: of this toolkit, or with ``others`` of any."""
    folder = megatron.latest_folder(source) or source
    if megatron.read_manifest(folder) is None and not (others and is_of_others(folder)):
        raise UserError(f"{flag} {source} holds no {megatron.TRACKER} and no manifest.json; give a --save folder")
    return folder


def _to_megatron(config: ConvertConfig, folder: Path, opened: Opened, target: Path, settled: Callable[[], None]) -> str:
    architecture = opened.architecture
    layout = _target_layout(config, architecture)
    padded = padded_vocab_size(architecture.vocab_size, config.make_vocab_size_divisible_by, layout.tensor)
    require_space(target, _bytes_of_weights(opened), "--save-dir")
    told = {key: opened.facts.get(key) for key in (*TRAINING_FACTS, "tokenizer")}
    written = Target(config.ckpt_format, architecture, layout, padded)
    dtype = write_weights(target, opened.source, written, told, workers=config.workers, settled=settled)
    return f"Megatron {config.ckpt_format}, TP {layout.tensor}, PP {layout.pipeline}{_told(layout)}, {dtype}"


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


def _bytes_of_weights(opened: Opened) -> int:
    shapes = hugging_face_shapes(opened.architecture)
    return sum(math.prod(shape) * opened.source.dtype(name).itemsize for name, shape in shapes.items())
