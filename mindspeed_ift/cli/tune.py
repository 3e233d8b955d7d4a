"""``mindspeed-ift tune`` / ``tools/posttrain_gpt.py``: indexed dataset -> trained checkpoint. Start it with torchrun."""

from __future__ import annotations

import os

from mindspeed_ift.cli.command import fail
from mindspeed_ift.config.accepted import ACCEPTED
from mindspeed_ift.config.describe import describe
from mindspeed_ift.config.flags import parse_with_origins
from mindspeed_ift.config.tuning import TuneConfig


def main(argv: list[str]) -> int:
    """Parse, plan, tune."""
    parsed = parse_with_origins(
        TuneConfig,
        argv,
        program="posttrain_gpt.py",
        description="Tune Qwen3 on an indexed instruction dataset.",
        accepted=ACCEPTED,
    )
    speaks = os.environ.get("RANK", "0") == "0"
    if speaks:
        print(describe(parsed), flush=True)
    from mindspeed_ift.config.layout import world_size
    from mindspeed_ift.training.plan import plan
    from mindspeed_ift.training.preview import preview

    if parsed.config.run.dry_run:
        print(preview(parsed.config, world_size()))
        return 0
    planned = plan(parsed.config, world_size())
    if speaks:
        print(planned.describe(), flush=True)
    # Imports Megatron-core, so only once the plan stands.
    from mindspeed_ift.training.tune import tune

    tune(planned, fail)
    return 0
