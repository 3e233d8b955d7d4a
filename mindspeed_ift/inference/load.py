"""A Hugging Face folder or a checkpoint of any layout -> one model in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mindspeed_ift.checkpoint.names import ExpertPart
from mindspeed_ift.checkpoint.source import model_shard, open_source
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout, padded_vocab_size
from mindspeed_ift.devices.device import current
from mindspeed_ift.model.build import ModelOptions, Qwen3Model, build_model
from mindspeed_ift.model.weights import fill
from mindspeed_ift.parallel import groups as process_groups
from mindspeed_ift.parallel.groups import Groups


@dataclass(frozen=True)
class Loaded:
    """A model ready to answer, and what its checkpoint says of itself.

    Attributes:
        model: this rank's stage, in evaluation mode, on the current device.
        groups: of the ranks that hold the others.
        facts: tokenizer, and of training prompt_type, its definition, certificate and enable_thinking where known.
    """

    model: Qwen3Model
    groups: Groups
    facts: dict[str, Any]


def load(folder: Path, layout: Layout | None = None) -> Loaded:
    """Load a Hugging Face folder, an ``iter_`` folder, or the latest checkpoint of a ``--save`` folder.

    Args:
        folder: of any layout.
        layout: tensor and pipeline parallel sizes of the processes that answer together; None: this one alone.

    Raises:
        UserError: nothing of the kind is there, or it is damaged.
    """
    layout = layout or Layout()
    groups = process_groups.start(layout, current(), seed=0)
    source, architecture, facts = open_source(folder)
    _check_layout(architecture, layout)
    stages = layout.stage_layers(architecture.num_layers)
    padded = padded_vocab_size(architecture.vocab_size, 1, layout.tensor)
    weights = model_shard(
        source,
        architecture,
        layers=stages[groups.pipeline_rank],
        first_stage=groups.pipeline_rank == 0,
        last_stage=groups.pipeline_rank == layout.pipeline - 1,
        tensor_size=layout.tensor,
        tensor_rank=groups.tensor_rank,
        padded_vocab=padded,
        experts=ExpertPart.of(layout, groups.tensor_rank, 0),
    )
    dtype = source.dtype("model.embed_tokens.weight")
    if current().kind == "cpu":
        dtype = torch.float32  # bf16 is emulated there, and slower
    options = ModelOptions(padded_vocab=padded, dtype=dtype, fresh=False)
    model = build_model(architecture, options, groups)
    fill(model, weights, str(folder))
    return Loaded(model.eval(), groups, facts)


def _check_layout(architecture: Architecture, layout: Layout) -> None:
    heads = (architecture.num_attention_heads, architecture.num_query_groups)
    for count in (*heads, architecture.ffn_hidden_size, architecture.moe_ffn_hidden_size):
        if count % layout.tensor:
            raise UserError(
                f"--tensor-model-parallel-size {layout.tensor} does not divide {count} heads or columns; choose a divisor"
            )
