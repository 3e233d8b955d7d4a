"""Time and layouts: what costs what, and that what is proposed keeps the rules and fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.layout import Layout
from mindspeed_ift.config.tuning import TuneConfig
from mindspeed_ift.planning.memory import Case
from mindspeed_ift.planning.operations import step_operations
from mindspeed_ift.planning.search import best, candidates, fullest, make_case
from mindspeed_ift.planning.throughput import Work, cost, operations_of_step, seconds_of_step
from tests.measured_memory import config_of

GIB = 2**30
EIGHT = Architecture.from_preset("qwen3-8b")
EXPERTS = Architecture.from_preset("qwen3-30b-a3b")


def config(*flags: str) -> TuneConfig:
    line = ["--data-path", "none", "--train-iters", "10", "--bf16", "--global-batch-size", "16", *flags]
    return parse(TuneConfig, line, program="test")


def case_of(layout: Layout, micro_batches: int = 8, **optimizer: object) -> Case:
    return Case(config_of(bf16=True, **optimizer), EIGHT, layout, 4096, micro_batches)


def test_a_step_takes_its_operations_at_a_share_of_the_peak() -> None:
    work = Work(None, 4096, 1000.5, 500.0, 1000.5 * 200, "test")
    one = step_operations(EIGHT, real_tokens=1000.5, learnt_tokens=500.0, squared_lengths=200100.0, adapters=False)
    assert operations_of_step(EIGHT, work, 16, adapters=False) == pytest.approx(16 * one)
    assert seconds_of_step(8e15, peak=1e15, mfu=0.5, devices=4) == 4.0


def test_what_costs_time() -> None:
    free = cost(case_of(Layout(data=8)), 8)
    assert free == 1.0
    uniform = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    assert cost(case_of(Layout(), **uniform), 8) == pytest.approx(4 / 3)
    block = uniform | {"recompute_method": "block", "recompute_num_layers": 9}
    assert cost(case_of(Layout(pipeline=2), **block), 8) == pytest.approx((1 + 1 / 3 / 2) * (1 + 1 / 8))
    attention = cost(case_of(Layout(), recompute_granularity="selective"), 8)
    assert 1 < attention < 1.1
    assert cost(case_of(Layout(pipeline=4)), 8) == 1 + 3 / 8
    assert cost(case_of(Layout(pipeline=4, chunk_layers=3)), 8) == 1 + 3 / 24
    inside, across = (cost(case_of(Layout(tensor=8)), nodes) for nodes in (8, 4))
    assert 1 < inside < 1.2 and across > 2


def test_layouts_keep_the_rules_and_fit() -> None:
    """Each can be pasted; the cheapest comes first; one for each set of degrees."""
    found = candidates(config(), EIGHT, 8, 4096, 8)
    assert [one.cost for one in found] == sorted(one.cost for one in found)
    chosen = best(found, 50 * GIB, 5)
    assert len(chosen) == 5 and all(one.memory.total <= 50 * GIB for one in chosen)
    degrees = [(one.case.layout.tensor, one.case.layout.pipeline, one.case.layout.context) for one in chosen]
    assert len(set(degrees)) == 5
    for one in chosen:
        again = make_case(config(*one.flags.split()), EIGHT, 8, 4096)
        assert again.layout == one.case.layout and fullest(again) == one.memory
    assert max(one.case.layout.tensor for one in found) == 8, "query groups"
    assert not best(found, 10 * GIB, 5)
    assert best(found, 1000 * GIB, 1)[0].cost == min(one.cost for one in found)


def test_layouts_of_experts() -> None:
    found = best(candidates(config(), EXPERTS, 16, 4096, 8), 58 * GIB, 5)
    assert found and any(one.case.layout.expert > 1 for one in found)
    for one in found:
        assert one.case.layout.tensor == 1 or one.case.layout.sequence_parallel
        again = make_case(config(*one.flags.split()), EXPERTS, 16, 4096)
        assert again.layout.tensor_of_experts == one.case.layout.tensor_of_experts and fullest(again) == one.memory


def test_rows_are_rounded_up_to_what_the_layout_needs() -> None:
    case = make_case(config("--context-parallel-size", "4"), EIGHT, 8, 1001)
    assert case.row == 1008 and case.tokens.held == 252 and case.micro_batches == 8
    again = replace(case.with_global_batch(32), micro_batches=1)
    assert again.config.optimizer.global_batch_size == 32
    with pytest.raises(UserError, match="3 processes do not divide by TP 2"):
        make_case(config("--tensor-model-parallel-size", "2"), EIGHT, 3, 64)
