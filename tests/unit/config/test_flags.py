"""From dataclasses to a command line and back: precedence, spelling, and one clear line for whatever is wrong."""

from __future__ import annotations

from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.tuning import TuneConfig


def test_a_switch_without_a_default_takes_no_value() -> None:
    flags = ["--group-query-attention", "--num-query-groups", "8", "--no-untie-embeddings-and-output-weights"]
    model = parse(TuneConfig, flags, program="test").model
    assert model.group_query_attention is True and model.num_query_groups == 8
    assert model.untie_embeddings_and_output_weights is False and model.qk_layernorm is None
