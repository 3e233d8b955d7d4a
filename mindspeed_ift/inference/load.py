"""A Hugging Face folder or a checkpoint of any layout -> one model in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.convert import hugging_face_shard, whole_model
from mindspeed_ift.checkpoint.huggingface import read_training
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout
from mindspeed_ift.devices.device import current
from mindspeed_ift.model.build import ModelOptions, Qwen3Model, build_model
from mindspeed_ift.model.weights import fill
from mindspeed_ift.parallel import groups as process_groups


@dataclass(frozen=True)
class Loaded:
    """A model ready to answer, and what its checkpoint says of itself.

    Attributes:
        model: in evaluation mode, on the current device.
        facts: tokenizer, and of training prompt_type, its definition, certificate and enable_thinking where known.
    """

    model: Qwen3Model
    facts: dict[str, Any]


def load(folder: Path) -> Loaded:
    """Load a Hugging Face folder, an ``iter_`` folder, or the latest checkpoint of a ``--save`` folder.

    Raises:
        UserError: nothing of the kind is there, or it is damaged.
    """
    folder = Path(folder)
    folder = megatron.latest_folder(folder) or folder
    groups = process_groups.start(Layout(), current(), seed=0)
    if megatron.read_manifest(folder) is not None:
        architecture, facts, weights = whole_model(folder)
    elif (folder / "config.json").is_file():
        architecture = Architecture.from_hugging_face(folder)
        facts = {**read_training(folder), "tokenizer": str(folder)}
        weights = hugging_face_shard(
            folder,
            architecture,
            layers=range(architecture.num_layers),
            first_stage=True,
            last_stage=True,
            tensor_size=1,
            tensor_rank=0,
            padded_vocab=architecture.vocab_size,
        )
    else:
        raise UserError(f"--load {folder} is neither a Hugging Face folder nor a checkpoint of this toolkit")
    dtype = next(iter(weights.values())).dtype
    if current().kind == "cpu":
        dtype = torch.float32  # bf16 is emulated there, and slower
    options = ModelOptions(padded_vocab=architecture.vocab_size, dtype=dtype, fresh=False)
    model = build_model(architecture, options, groups)
    fill(model, weights, str(folder))
    return Loaded(model.eval(), facts)
