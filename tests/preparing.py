"""Records as a file, and what becomes of them in preparation, for tests of odd ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.data.preprocess import preprocess

GOOD = {"instruction": "q", "output": "a"}


def lines(*records: Any) -> bytes:
    """As jsonl."""
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def kept_and_dropped(
    content: bytes, name: str, tokenizer: Path, folder: Path, **options: Any
) -> tuple[int, dict[str, int]]:
    """Prepare a file of that content: samples, and dropped records by reason."""
    (folder / name).write_bytes(content)
    config = PreprocessConfig(
        input=str(folder / name),
        output_prefix=str(folder / "out" / "data"),
        tokenizer_name_or_path=str(tokenizer),
        **{"prompt_type": "qwen3", **options},
    )
    ledger = preprocess(config, report=lambda line: None).ledger
    return ledger.kept, {reason: tally.count for reason, tally in ledger.dropped.items()}
