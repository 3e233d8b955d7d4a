"""``mindspeed-ift convert`` / ``tools/convert_ckpt.py``: Hugging Face <-> Megatron checkpoints."""

from __future__ import annotations

from mindspeed_ift.config.accepted import ACCEPTED
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.config.flags import parse


def main(argv: list[str]) -> int:
    """Parse, convert, say what was written."""
    config = parse(
        ConvertConfig,
        argv,
        program="convert_ckpt.py",
        description="Convert between Hugging Face folders and Megatron checkpoints.",
        accepted=ACCEPTED,
    )
    from mindspeed_ift.checkpoint.convert import convert

    print(convert(config))
    return 0
