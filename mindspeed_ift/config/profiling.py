"""Which steps of which ranks are traced, and how closely."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class ProfileFlags:
    """Traces of some steps, for chrome://tracing, Perfetto, TensorBoard, or MindStudio."""

    profile: bool = False
    """Trace some steps, and write a file a rank to --profile-save-path."""
    profile_step_start: int = 10
    """First step of the trace."""
    profile_step_end: int = 12
    """The trace ends before this step."""
    profile_ranks: tuple[int, ...] = (0,)
    """Ranks that are traced; -1: all."""
    profile_save_path: Path | None = None
    """Folder of the traces. Default: SAVE/profile."""
    profile_with_cpu: bool = True
    """Trace what the host does too; --no-profile-with-cpu leaves the device alone (and the names of a step's parts)."""
    profile_with_stack: bool = False
    """Trace the lines of the source that operations come from."""
    profile_with_memory: bool = False
    """Trace what is allocated and freed."""
    profile_record_shapes: bool = False
    """Trace the shapes of the operations' tensors."""
    profile_level: Literal["level0", "level1", "level2"] = "level0"
    """On NPU: how much of the device is recorded, of operators alone (level0) to all there is (level2)."""

    def of_rank(self, rank: int) -> bool:
        """Whether this rank is traced."""
        return self.profile and (rank in self.profile_ranks or -1 in self.profile_ranks)
