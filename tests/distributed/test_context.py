"""Context parallel attention = full attention, for each algorithm and any samples, outputs and gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.context_worker import LAYOUTS, SPANS, WORLD
from tests.distributed.worlds import run
from tests.tolerances import ATTENTION_BF16, ATTENTION_PARTS

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank of one world found."""
    file = tmp_path_factory.mktemp("context") / "found"
    run([[str(file)]], WORLD, "tests.distributed.context_worker")
    return [json.loads(Path(f"{file}.{rank}").read_text(encoding="utf-8")) for rank in range(WORLD)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_output_and_gradients_are_those_of_full_attention(ranks: list[dict[str, Any]], name: str) -> None:
    records = [dict(one, rank=number) for number, rank in enumerate(ranks) for one in rank["far"]]
    records = [record for record in records if record["layout"] == name]
    assert {record["rank"] for record in records} == set(range(LAYOUTS[name].context))
    for record in records:
        relative = ATTENTION_BF16 if record.get("half") else ATTENTION_PARTS
        assert record["far"] <= relative * record["most"], record


@pytest.mark.parametrize(
    ("name", "computing"),
    [
        ("none", [1, 1, 1, 1]),
        ("inside", [1, 1, 1, 1]),
        ("first edge", [1, 2, 1, 1]),
        ("all", [4, 4, 4, 4]),
    ],
)
def test_a_step_without_a_spanning_sample_computes_nothing(
    ranks: list[dict[str, Any]], name: str, computing: list[int]
) -> None:
    """Blocks of each rank: one at home, and one in each step in which a sample spans."""
    assert name in SPANS
    assert [rank["blocks"][name] for rank in ranks] == [[number, number] for number in computing]
