"""A model of Megatron-core small enough for unit tests, in a world of one rank."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mindspeed_ift.checkpoint.huggingface import Folder
from mindspeed_ift.checkpoint.names import Stage
from mindspeed_ift.checkpoint.source import model_shard
from mindspeed_ift.checkpoint.torch_file import LazyTensors
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.layout import Layout
from mindspeed_ift.devices.device import current
from mindspeed_ift.model.build import ModelOptions, Qwen3Model, build_model
from mindspeed_ift.parallel import groups as process_groups
from mindspeed_ift.parallel.groups import Groups


def tiny_architecture(**changes: object) -> Architecture:
    """Two layers, four heads in two groups, a vocabulary of 30."""
    sizes = {"num_layers": 2, "hidden_size": 16, "ffn_hidden_size": 24, "num_attention_heads": 4}
    sizes |= {"num_query_groups": 2, "kv_channels": 4, "vocab_size": 30}
    return Architecture(**{**sizes, **changes})  # type: ignore[arg-type]


def tiny_experts(**changes: object) -> Architecture:
    """The same with four experts of width 6 in each layer, two a token."""
    return tiny_architecture(**{"num_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 6, **changes})


@contextlib.contextmanager
def world_of_one(seed: int = 1) -> Iterator[Groups]:
    """The groups of a single process."""
    groups = process_groups.start(Layout(), current(), seed=seed)
    try:
        yield groups
    finally:
        process_groups.stop(groups)


def tiny_model(groups: Groups, *, padded_vocab: int = 32, **options: object) -> Qwen3Model:
    """Fresh weights, the embedding padded by two rows."""
    return build_model(tiny_architecture(), ModelOptions(padded_vocab=padded_vocab, **options), groups)  # type: ignore[arg-type]


def whole_shard(folder: Path, padded_vocab: int) -> LazyTensors:
    """The state dict of a rank that holds all of a Hugging Face folder's model."""
    architecture = Architecture.from_hugging_face(folder)
    stage = Stage(range(architecture.num_layers))
    return model_shard(Folder(folder), architecture, stage, Layout(), (0, 0), padded_vocab)
