"""In which order the stages of a pipeline receive what micro-batches of different lengths make."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mindspeed_ift.config.layout import Layout
from mindspeed_ift.parallel import pipeline
from mindspeed_ift.parallel.pipeline import KnownShapes, communication

pytestmark = pytest.mark.skipif(not pipeline.TAKES_COMMUNICATOR, reason="this Megatron-core asks for shapes by itself")
CONFIG = SimpleNamespace(variable_seq_lengths=True, hidden_size=8, microbatch_group_size_per_vp_stage=2)


@pytest.fixture(autouse=True)
def no_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.P2PCommunicator, "__init__", lambda self, group, config: None)


def groups(rank: int, chunks: int = 1, **layout: Any) -> Any:
    """Of one rank in a pipeline."""
    return SimpleNamespace(
        collection=SimpleNamespace(pp=None),
        chunks=chunks,
        pipeline_rank=rank,
        layout=Layout(**{"pipeline": 2, **layout}),
    )


def received(known: KnownShapes, *, forward: bool, count: int) -> list[int]:
    """Lengths of the first things that arrive."""
    found = [known._communicate_shapes(None, None, forward, not forward) for _ in range(count)]
    assert all(one[forward] is None for one in found)
    return [shape[0] for one in found if (shape := one[not forward]) is not None]


def known(rank: int, lengths: list[int], **others: Any) -> KnownShapes:
    """The communicator of one pass."""
    told = communication(CONFIG, groups(rank, **others), [(1, length) for length in lengths])
    return told["p2p_communicator"]


def test_one_chunk_a_rank_receives_the_micro_batches_in_their_order() -> None:
    assert received(known(1, [16, 24, 32]), forward=True, count=3) == [16, 24, 32]
    assert received(known(0, [16, 24, 32]), forward=False, count=3) == [16, 24, 32]
    with pytest.raises(StopIteration):  # from nowhere
        received(known(0, [16, 24, 32]), forward=True, count=1)
    with pytest.raises(StopIteration):
        received(known(1, [16, 24, 32]), forward=False, count=1)


def test_chunks_take_turns_by_groups_of_micro_batches() -> None:
    """Two micro-batches through chunk 0, the same two through chunk 1, then the next two; the ends have less to receive."""
    lengths = [16, 24, 32, 40]
    turns = [16, 24, 16, 24, 32, 40, 32, 40]
    assert received(known(1, lengths, chunks=2), forward=True, count=8) == turns
    assert received(known(0, lengths, chunks=2), forward=True, count=4) == lengths
    assert received(known(0, lengths, chunks=2), forward=False, count=8) == turns
    assert received(known(1, lengths, chunks=2), forward=False, count=4) == lengths


@pytest.mark.parametrize(("sequence_parallel", "positions"), [(False, 32), (True, 16)])
def test_shapes_are_what_a_rank_holds(sequence_parallel: bool, positions: int) -> None:
    place = groups(1, tensor=2, sequence_parallel=sequence_parallel)
    told = communication(CONFIG, place, [(3, 32)])
    assert told["p2p_communicator"]._communicate_shapes(None, None, True, False) == ((positions, 3, 8), None)
    assert told["pg_collection"] is place.collection


def test_megatron_goes_its_own_way_where_all_is_alike() -> None:
    alike = SimpleNamespace(**{**vars(CONFIG), "variable_seq_lengths": False})
    assert communication(alike, groups(0), [(1, 8)]) == {}
    assert communication(CONFIG, groups(0, pipeline=1), [(1, 8)]) == {}
