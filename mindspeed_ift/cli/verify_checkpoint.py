"""``mindspeed-ift verify-checkpoint FOLDER`` / ``tools/verify_checkpoint.py``: whether weights on disk are whole."""

from __future__ import annotations

from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.verify import CheckpointConfig
from mindspeed_ift.config.words import first_word_of


def main(argv: list[str]) -> int:
    """Check, print the table and a line for each problem; 1 if there is one."""
    argv = first_word_of(argv, "--load")
    config = parse(CheckpointConfig, argv, program="verify-checkpoint", description="Check weights on the disk.")
    config.check()
    assert config.load is not None
    from mindspeed_ift.cli.verify_dataset import print_report
    from mindspeed_ift.verify.checkpoint import verify_checkpoint

    report = verify_checkpoint(config.load)
    print_report(report, str(config.load))
    return 1 if report.problems else 0
