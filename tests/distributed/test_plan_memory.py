"""Plans of tensor, context and pipeline parallel against what two ranks take."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mindspeed_ift.planning.memory import memory_of_ranks, peaks_of_rank
from tests.distributed.plan_worker import CASES
from tests.distributed.worlds import run
from tests.tolerances import PLANNED_ACTIVATIONS, PLANNED_PEAK

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """Of each case what each rank measured."""
    file = tmp_path_factory.mktemp("plan") / "found.json"
    run([[str(file)]], 2, "tests.distributed.plan_worker")
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("number", range(len(CASES)), ids=["tensor", "context", "pipeline"])
def test_a_plan_is_what_each_rank_takes(found: list[list[dict[str, Any]]], number: int) -> None:
    case = CASES[number]
    planned = memory_of_ranks(case)
    for rank, measured in enumerate(found[number]):
        stage = rank if case.layout.pipeline > 1 else 0
        plan = planned[stage]
        assert plan.weights == measured["weights"] and plan.gradients == measured["gradients"]
        # A distributed optimizer cuts a buffer that is padded, so ranks hold a little more or less than their share.
        assert plan.optimizer == pytest.approx(measured["optimizer"], rel=PLANNED_ACTIVATIONS)
        if measured["saved"]:
            assert plan.activations == pytest.approx(measured["saved"], rel=PLANNED_ACTIVATIONS)
        peaks = peaks_of_rank(case, stage)
        peak = max(peaks[moment] for moment in peaks if moment != "update")
        assert peak == pytest.approx(measured["peak"], rel=PLANNED_PEAK)
