"""Metrics for other eyes: TensorBoard, where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class TensorBoard:
    """Writes what is a number of each record, under the record's names.

    Args:
        folder: of the event files.
        first: step to start from; what a former run wrote after it is hidden.

    Raises:
        ImportError: it is not installed.
    """

    def __init__(self, folder: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # which imports tensorboard

        self._writer: Any = SummaryWriter(str(folder), purge_step=first + 1)

    def write(self, record: dict[str, Any]) -> None:
        """One record of metrics.jsonl."""
        for name, value in record.items():
            if name != "iteration" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, record["iteration"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
