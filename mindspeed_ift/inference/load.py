"""A Hugging Face folder or a checkpoint of any layout -> one model in this process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mindspeed_ift.checkpoint.names import Stage
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
        name: its folder, or that its weights are fresh.
        facts: tokenizer, and of training prompt_type, its definition, certificate and enable_thinking where known.
    """

    model: Qwen3Model
    groups: Groups
    facts: dict[str, Any]
    name: str

    def require_ids(self, highest: int) -> None:
        """Refuse token ids that the model has not.

        Raises:
            UserError: ``highest`` is one.
        """
        vocab_size = self.model.architecture.vocab_size
        if highest >= vocab_size:
            raise UserError(
                f"the tokenizer gives the id {highest}, but the model of {self.name} has the ids 0 to"
                f" {vocab_size - 1}; give --tokenizer-name-or-path the tokenizer it was trained with"
            )


def load(folder: Path, layout: Layout | None = None, *, fresh: bool = False) -> Loaded:
    """Load a Hugging Face folder, an ``iter_`` folder, or the latest checkpoint of a ``--save`` folder.

    Args:
        folder: of any layout.
        layout: sizes over the processes; data parallel ones hold a model each. None: this process alone. Of layers that do
            not divide, the pipeline's ends, which have the embeddings to hold, get fewer.
        fresh: leave its weights, and draw others, as training without weights to start from does.

    Raises:
        UserError: nothing of the kind is there, or it is damaged.
    """
    layout = layout or Layout()
    source, architecture, facts = open_source(folder)
    _check_layout(architecture, layout)
    if layout.pipeline > 1 and architecture.num_layers % layout.pipeline:
        layout = replace(layout, layer_list=_spread(architecture.num_layers, layout.pipeline))
    groups = process_groups.start(layout, current(), seed=0)
    padded = padded_vocab_size(architecture.vocab_size, 1, layout.tensor)
    dtype = source.dtype("model.embed_tokens.weight")
    if current().kind == "cpu":
        dtype = torch.float32  # bf16 is emulated there, and slower
    options = ModelOptions(padded_vocab=padded, dtype=dtype, fresh=fresh)
    model = build_model(architecture, options, groups)
    if not fresh:
        stage = Stage(model.layer_numbers, model.pre_process, model.post_process)
        ranks = groups.tensor_rank, groups.expert_rank
        weights = model_shard(source, architecture, stage, layout, ranks, padded)
        fill(model, weights, str(folder))
    return Loaded(model.eval(), groups, facts, "fresh weights" if fresh else str(folder))


def _spread(layers: int, devices: int) -> tuple[int, ...]:
    """Layers of each device: as even as can be, one more for those in the middle first."""
    middle_first = sorted(range(devices), key=lambda device: abs(2 * device - devices + 1))
    more = middle_first[: layers % devices]
    return tuple(layers // devices + (device in more) for device in range(devices))


def _check_layout(architecture: Architecture, layout: Layout) -> None:
    if layout.pipeline > architecture.num_layers:
        raise UserError(
            f"--pipeline-model-parallel-size {layout.pipeline} is more than the {architecture.num_layers} layers; give less"
        )
    heads = (architecture.num_attention_heads, architecture.num_query_groups)
    for count in (*heads, architecture.ffn_hidden_size, architecture.moe_ffn_hidden_size):
        if count % layout.tensor:
            raise UserError(
                f"--tensor-model-parallel-size {layout.tensor} does not divide {count} heads or columns; choose a divisor"
            )
