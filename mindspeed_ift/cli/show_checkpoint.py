"""``mindspeed-ift show-checkpoint FOLDER`` / ``tools/show_checkpoint.py``: what weights on disk are, and their tensors."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.verify import CheckpointConfig
from mindspeed_ift.config.words import first_word_of

if TYPE_CHECKING:
    from mindspeed_ift.checkpoint.inspection import Tensor, Weights


def main(argv: list[str]) -> int:
    """Print what is said of the weights, then every tensor."""
    argv = first_word_of(argv, "--load")
    config = parse(CheckpointConfig, argv, program="show-checkpoint", description="Look at weights on the disk.")
    config.check()
    assert config.load is not None
    from mindspeed_ift.checkpoint.inspection import open_weights

    weights = open_weights(config.load)
    _print(weights, list(weights.tensors()))
    return 0


def _print(weights: Weights, tensors: list[Tensor]) -> None:
    from rich.table import Table
    from rich.text import Text

    from mindspeed_ift.cli.console import Console

    console = Console()
    console.print(f"{weights.folder} ({weights.kind})", markup=False, soft_wrap=True)
    facts = Table(show_header=False)
    for name, value in weights.facts.items():
        if value not in (None, {}, []):
            facts.add_row(name, Text(_told(value)))
    console.print(facts)
    table = Table()
    for column in ("tensor", "shape", "dtype", "file"):
        table.add_column(column, overflow="fold")
    for tensor in tensors:
        table.add_row(tensor.name, " x ".join(map(str, tensor.shape)), tensor.dtype, tensor.file)
    console.print(table)
    print(f"{len(tensors):,} tensors, {sum(prod(tensor.shape) for tensor in tensors):,} values")


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return str(value)
