"""``mindspeed-ift convert`` / ``tools/convert_ckpt.py``: Hugging Face <-> Megatron checkpoints."""

from __future__ import annotations

from pathlib import Path

from mindspeed_ift.config.accepted import CONVERT_ACCEPTED
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.config.describe import describe
from mindspeed_ift.config.flags import parse_with_origins


def main(argv: list[str]) -> int:
    """Parse, convert, say what was written."""
    parsed = parse_with_origins(
        ConvertConfig,
        argv,
        program="convert_ckpt.py",
        description="Convert between Hugging Face folders and Megatron checkpoints.",
        accepted=CONVERT_ACCEPTED,
    )
    parsed.config.check()
    if parsed.config.dry_run:
        print(describe(parsed))
        return 0
    from mindspeed_ift.checkpoint.convert import convert

    for line in parsed.ignored:
        print(line)
    print(convert(parsed.config))
    if parsed.config.save_model_type == "hf":
        _print_notice(parsed.config.save_dir)
    return 0


def _print_notice(folder: Path) -> None:
    """Say where the exported tokenizer's chat template does not write what the model was trained on."""
    from mindspeed_ift.checkpoint.huggingface import read_training
    from mindspeed_ift.verify.template import serving_notice

    notice = serving_notice(read_training(folder), folder) if (folder / "tokenizer_config.json").is_file() else None
    if notice:
        print(f"notice: {notice}")
