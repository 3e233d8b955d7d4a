"""Where a run stands: what a checkpoint keeps beside the weights, so that a resume goes on as if nothing had happened."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from mindspeed_ift.data.balanced_order import Dealing


@dataclass
class Progress:
    """Counted from the start of the run, over all its restarts.

    Attributes:
        done: steps.
        consumed: samples (or packed rows) taken; from the checkpoint, so that another --global-batch-size goes on where
            the data stopped.
        skipped: steps that were refused and moved no weight.
        overflowed: steps that moved no weight, and made the loss scale of fp16 fall.
        best_loss: lowest loss of an evaluation, or None before the first.
        best_iteration: its step.
        evaluations_since_best: without improvement.
        dealing: of the packed rows of this epoch, if they are balanced.
    """

    done: int = 0
    consumed: int = 0
    skipped: int = 0
    overflowed: int = 0
    best_loss: float | None = None
    best_iteration: int | None = None
    evaluations_since_best: int = 0
    dealing: Dealing | None = None

    def evaluated(self, loss: float) -> bool:
        """Note the loss of an evaluation after the last step; whether it is the best so far. No number never is."""
        best = math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss)
        if best:
            self.best_loss, self.best_iteration, self.evaluations_since_best = loss, self.done, 0
        else:
            self.evaluations_since_best += 1
        return best

    @classmethod
    def of_manifest(cls, manifest: dict[str, Any], rows_of_a_step: int) -> Progress:
        """What `facts` wrote; of a checkpoint of others only the steps are known."""
        done = int(manifest.get("iteration", 0))
        return cls(
            done=done,
            consumed=int(manifest.get("consumed_samples", done * rows_of_a_step)),
            skipped=int(manifest.get("skipped_steps", 0)),
            overflowed=int(manifest.get("overflowed_steps", 0)),
            **manifest.get("evaluations", {}),
            dealing=Dealing(**manifest["dealing"]) if manifest.get("dealing") else None,
        )

    def facts(self) -> dict[str, Any]:
        """For the manifest of a checkpoint, which has the steps already."""
        evaluations = {key: getattr(self, key) for key in ("best_loss", "best_iteration", "evaluations_since_best")}
        facts = {"consumed_samples": self.consumed, "skipped_steps": self.skipped, "evaluations": evaluations}
        facts |= {"overflowed_steps": self.overflowed} if self.overflowed else {}
        return facts | ({"dealing": asdict(self.dealing)} if self.dealing is not None else {})
