"""A step that was refused in, its samples as a file of JSON lines out: what a person has to look at."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.micro_batches import MicroBatches
from mindspeed_ift.data.staging import whole
from mindspeed_ift.data.tokenizer import Tokenizer, load_tokenizer


def refused_path(folder: Path, iteration: int) -> Path:
    """Where the samples of a refused step are written."""
    return Path(folder) / f"refused_step_{iteration}.jsonl"


def write_refused(
    path: Path, training: MicroBatches, consumed: int, micro_batches: int, token_facts: dict[str, Any]
) -> None:
    """Write the global batch, a line a sample (or packed row): ``data_rank``, ``micro_batch``, ``row``, ``data_path``,
    ``sample`` (its number in the dataset), ``input_ids``, ``labels``, and ``text`` if the tokenizer is at hand.

    Args:
        path: of the file; it appears whole.
        training: of any data rank: all read the same dataset.
        consumed: samples taken before this step.
        micro_batches: of the step and data rank.
        token_facts: that tell the tokenizer.
    """
    tokenizer = _tokenizer(token_facts, training.dataset.manifest or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as aside, open(aside, "w", encoding="utf-8") as file:
        for record in _records(training, consumed, micro_batches, tokenizer):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _records(
    training: MicroBatches, consumed: int, micro_batches: int, tokenizer: Tokenizer | None
) -> Iterator[dict[str, Any]]:
    for rank in range(training.data_size):
        taken = dataclasses.replace(training, data_rank=rank).numbered(consumed, micro_batches)
        for micro_batch, rows in enumerate(taken):
            for row, (number, sample) in enumerate(rows):
                ids = sample.input_ids.tolist()
                record: dict[str, Any] = {"data_rank": rank, "micro_batch": micro_batch, "row": row}
                record |= dict(zip(("data_path", "sample"), training.dataset.located(number), strict=True))
                record |= {"input_ids": ids, "labels": sample.labels.tolist()}
                yield record | ({"text": tokenizer.decode(ids)} if tokenizer is not None else {})


def _tokenizer(facts: dict[str, Any], manifest: dict[str, Any]) -> Tokenizer | None:
    """The one that the run was given; else the one that the dataset was made with, if it still lies where it was."""
    path = facts["tokenizer"] or manifest.get("tokenizer")
    if path is None:
        return None
    try:
        tokenizer = load_tokenizer(path)
    except UserError:
        return None
    return tokenizer if manifest.get("tokenizer_sha256") in (None, tokenizer.fingerprint) else None
