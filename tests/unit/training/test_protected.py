"""Which old checkpoints --keep-last leaves alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from mindspeed_ift.config.lora import LoraFlags
from mindspeed_ift.training.sources import Sources
from mindspeed_ift.training.tune import _protected

OLD, OTHER = Path("run/iter_0000003"), Path("base/iter_0000000")


@pytest.mark.parametrize(
    ("sources", "alone", "expected"),
    [
        (Sources(), False, set()),
        (Sources(weights=OLD, resume=OLD), False, set()),
        (Sources(weights=OTHER, adapters=OLD, resume=OLD), False, {OTHER}),
        (Sources(weights=OTHER, adapters=OLD, resume=OLD), True, {OTHER}),
        (Sources(weights=OLD, adapters=OLD, resume=OLD), False, set()),
        (Sources(weights=OLD, adapters=OLD, resume=OLD), True, {OLD}),
        (Sources(hugging_face=Path("hf"), adapters=OLD, resume=OLD), True, set()),
    ],
)
def test_weights_that_later_adapters_need_stay(sources: Sources, alone: bool, expected: set[Path]) -> None:
    """What is saved alone from now on needs the weights; what is saved whole needs nothing old."""
    lora = LoraFlags(("linear_qkv",), lora_ckpt_filter=alone)
    run = SimpleNamespace(plan=SimpleNamespace(sources=sources, config=SimpleNamespace(lora=lora)))
    assert _protected(run) == expected  # type: ignore[arg-type]
