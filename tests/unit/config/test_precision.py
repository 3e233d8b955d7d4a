"""Bits of weights and activations, and the loss scale of fp16: what does not go together."""

from __future__ import annotations

import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.precision import check_precision
from mindspeed_ift.config.tuning import TuneConfig
from tests.tiny_model import tiny_architecture


def check(flags: str, experts: int = 0) -> None:
    changes = {"num_experts": experts, "moe_router_topk": 2, "moe_ffn_hidden_size": 8} if experts else {}
    check_precision(parse(TuneConfig, flags.split(), program="test"), tiny_architecture(**changes))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--fp16 --bf16", "--fp16 and --bf16 exclude each other"),
        ("--loss-scale 8", "--loss-scale is about the loss scale of --fp16"),
        ("--bf16 --hysteresis 4", "--hysteresis is about the loss scale of --fp16"),
        ("--fp16 --loss-scale-window 0", "--loss-scale-window 0 must be over 0"),
        ("--fp16 --loss-scale -1", "--loss-scale -1.0 must be over 0"),
        (
            "--fp16 --initial-loss-scale 0.5 --min-loss-scale 1",
            "--initial-loss-scale 0.5 is under --min-loss-scale 1.0",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(flags: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(flags)


def test_what_goes_together() -> None:
    """MindSpeed-LLM's lines give the first scale with --bf16 too."""
    check("--bf16 --initial-loss-scale 4096")
    check("--fp16 --initial-loss-scale 4096 --min-loss-scale 4 --loss-scale-window 50 --hysteresis 1")
    with pytest.raises(UserError, match="--fp16 does not train a mixture of experts"):
        check("--fp16", experts=4)
