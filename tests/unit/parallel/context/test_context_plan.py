"""What context parallel ranks compute is what one rank computes: every pair of tokens once, for any boundaries."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mindspeed_ift.config.layout import Layout
from mindspeed_ift.parallel.context.plan import ends_of_rows, gather_plan, ring_plan
from mindspeed_ift.parallel.context.split import local_positions


def random_ends(generator: np.random.Generator, rows: int, length: int, cuts: int) -> tuple[int, ...]:
    """Ends of ``cuts`` random cuts of all rows, and of the rows themselves."""
    inner = generator.integers(1, rows * length, cuts).tolist()
    return tuple(sorted({*range(0, rows * length + 1, length), *inner}))


def cases() -> list[tuple[tuple[int, ...], int, int, int]]:
    """(ends, rows, length, ranks): one segment, segments of one token, a short one on every edge of a chunk, random ones."""
    generator = np.random.default_rng(5)
    found = []
    for ranks in (2, 3, 4):
        length = 2 * ranks * 4
        found += [((0, length), 1, length, ranks), (tuple(range(length + 1)), 1, length, ranks)]
        found += [(tuple(range(0, length + 1, 4)), 1, length, ranks), ((0, 1, length - 1, length), 1, length, ranks)]
        for rows in (1, 2, 3):
            found += [(random_ends(generator, rows, length, cuts), rows, length, ranks) for cuts in range(12)]
    return found


def expected_pairs(ends: tuple[int, ...]) -> np.ndarray:
    """[query, key]: 1 where a token sees another."""
    segment = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    return np.tril(segment[:, None] == segment[None, :]).astype(int)


def held(rows: int, length: int, ranks: int, rank: int) -> np.ndarray:
    """Flattened positions of the rows that a rank holds, one row after another."""
    local = local_positions(length, Layout(context=ranks), rank).numpy()
    return (np.arange(rows)[:, None] * length + local).reshape(-1)


@pytest.mark.parametrize(("ends", "rows", "length", "ranks"), cases())
def test_the_ring_computes_every_pair_once(ends: tuple[int, ...], rows: int, length: int, ranks: int) -> None:
    computed = np.zeros((rows * length, rows * length), int)
    for rank in range(ranks):
        plan, mine = ring_plan(ends, rows, length, ranks, rank), held(rows, length, ranks, rank)
        for start, stop in zip(plan.home[:-1], plan.home[1:]):
            piece = mine[start:stop]
            computed[np.ix_(piece, piece)] += np.tril(np.ones((len(piece), len(piece)), int))
        for step, rectangles in enumerate(plan.away, start=1):
            theirs = held(rows, length, ranks, (rank - step) % ranks)
            assert len(rectangles) <= rows
            for rectangle in rectangles:
                computed[np.ix_(mine[rectangle.queries], theirs[rectangle.keys])] += 1
    np.testing.assert_array_equal(computed, expected_pairs(ends))


@pytest.mark.parametrize(("ends", "rows", "length", "ranks"), cases())
def test_gathered_keys_are_cut_to_what_is_needed(ends: tuple[int, ...], rows: int, length: int, ranks: int) -> None:
    computed = np.zeros((rows * length, rows * length), int)
    for rank in range(ranks):
        mine = held(rows, length, ranks, rank).reshape(rows, -1)
        for plan in gather_plan(ends, rows, length, ranks, rank):
            queries = mine[plan.row, plan.queries]
            keys = np.arange(plan.row * length, (plan.row + 1) * length)[plan.keys]
            assert plan.query_ends[-1] == len(queries) and plan.key_ends[-1] == len(keys)
            for q0, q1, k0, k1 in zip(plan.query_ends, plan.query_ends[1:], plan.key_ends, plan.key_ends[1:]):
                causal = np.tril(np.ones((q1 - q0, k1 - k0), int), k1 - k0 - (q1 - q0))
                computed[np.ix_(queries[q0:q1], keys[k0:k1])] += causal
            # Every key is seen by some query: nothing is sliced in vain.
            assert computed[np.ix_(queries, keys)].any(0).all()
    np.testing.assert_array_equal(computed, expected_pairs(ends))


def test_short_samples_leave_most_steps_empty() -> None:
    """Samples shorter than a chunk span neighbouring chunks only, whose holders are neighbours in the ring."""
    ranks, length = 8, 8 * 2 * 16
    plans = [ring_plan(tuple(range(0, length + 1, 8)), 1, length, ranks, rank) for rank in range(ranks)]
    assert not any(any(plan.away) for plan in plans), "no sample spans: no step computes"
    shifted = (0, *range(4, length, 8), length)
    plans = [ring_plan(shifted, 1, length, ranks, rank) for rank in range(ranks)]
    assert sum(len(step) for plan in plans for step in plan.away) == 2 * ranks - 2, (
        "one rectangle an edge but the middle one"
    )
    assert all(not step for plan in plans for step in plan.away[1:-1])


def test_one_long_sample_is_balanced() -> None:
    """Zigzag gives each rank as many pairs of tokens as any other, but for the diagonal."""
    ranks, length = 4, 64
    areas = []
    for rank in range(ranks):
        plan = ring_plan((0, length), 1, length, ranks, rank)
        home = sum((stop - start) * (stop - start + 1) // 2 for start, stop in zip(plan.home[:-1], plan.home[1:]))
        parts = [part for step in plan.away for part in step]
        areas.append(home + sum((p.queries.stop - p.queries.start) * (p.keys.stop - p.keys.start) for p in parts))
    assert len(set(areas)) == 1 and sum(areas) == length * (length + 1) // 2


def test_rows_without_boundaries_are_a_segment_each() -> None:
    assert ends_of_rows(None, 3, 4) == (0, 4, 8, 12)
    assert ends_of_rows(torch.tensor([0, 3, 4, 8], dtype=torch.int32), 2, 4) == (0, 3, 4, 8)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(context=2),
        Layout(context=3),
        Layout(context=4, ulysses=4),
        Layout(context=4, ulysses=2),
        Layout(context=6, ulysses=3),
        Layout(context=6, ulysses=2),
        Layout(context=3, gather_keys=True),
    ],
)
def test_every_position_has_one_holder(layout: Layout) -> None:
    length = 5 * layout.row_multiple
    parts = [local_positions(length, layout, rank) for rank in range(layout.context)]
    assert {len(part) for part in parts} == {length // layout.context}
    assert sorted(torch.cat(parts).tolist()) == list(range(length))


def test_ulysses_neighbours_hold_neighbouring_parts_of_the_zigzag() -> None:
    parts = [local_positions(16, Layout(context=4, ulysses=2), rank).tolist() for rank in range(4)]
    assert parts == [[0, 1, 2, 3], [12, 13, 14, 15], [4, 5, 6, 7], [8, 9, 10, 11]]
