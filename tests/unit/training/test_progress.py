"""Where a run stands, kept by its checkpoints."""

from __future__ import annotations

import json
import math

from mindspeed_ift.data.balanced_order import Dealing
from mindspeed_ift.training.progress import Progress


def test_what_a_manifest_keeps_is_what_it_gives_back() -> None:
    kept = Progress(done=7, consumed=31, skipped=2, best_loss=0.125, best_iteration=5, evaluations_since_best=1)
    manifest = json.loads(json.dumps({"iteration": 7} | kept.facts()))
    assert Progress.of_manifest(manifest, rows_of_a_step=4) == kept
    kept.dealing = Dealing(4, 8, 24)
    manifest = json.loads(json.dumps({"iteration": 7} | kept.facts()))
    assert Progress.of_manifest(manifest, rows_of_a_step=4) == kept
    assert Progress.of_manifest({"iteration": 7}, rows_of_a_step=4) == Progress(done=7, consumed=28)


def test_the_best_evaluation_is_the_lowest_and_the_first_of_equals() -> None:
    progress = Progress()
    found = []
    for progress.done, loss in enumerate((math.nan, 2.0, 2.0, math.inf, 1.0, 1.5), 1):
        found.append((progress.evaluated(loss), progress.best_iteration, progress.evaluations_since_best))
    assert found == [(False, None, 1), (True, 2, 0), (False, 2, 1), (False, 2, 2), (True, 5, 0), (False, 5, 1)]
    assert progress.best_loss == 1.0
