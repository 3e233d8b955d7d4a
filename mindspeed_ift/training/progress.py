"""Where a run stands: what a checkpoint keeps beside the weights, so that a resume goes on as if nothing had happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Progress:
    """Counted from the start of the run, over all its restarts.

    Attributes:
        done: steps.
        consumed: samples (or packed rows) taken; from the checkpoint, so that another --global-batch-size goes on where
            the data stopped.
        skipped: steps that were refused and moved no weight.
    """

    done: int = 0
    consumed: int = 0
    skipped: int = 0

    @classmethod
    def of_manifest(cls, manifest: dict[str, Any], rows_of_a_step: int) -> Progress:
        """What `facts` wrote; of a checkpoint of others only the steps are known."""
        done = int(manifest.get("iteration", 0))
        return cls(
            done=done,
            consumed=int(manifest.get("consumed_samples", done * rows_of_a_step)),
            skipped=int(manifest.get("skipped_steps", 0)),
        )

    def facts(self) -> dict[str, Any]:
        """For the manifest of a checkpoint, which has the steps already."""
        return {"consumed_samples": self.consumed, "skipped_steps": self.skipped}
