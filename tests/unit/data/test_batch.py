"""Rows, shifted labels, positions and boundaries of the three sequence modes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mindspeed_ift.data.batch import Batch, DynamicLength, FixedLength, Packed, round_up
from mindspeed_ift.data.boundaries import EndOfDocument, StoredBoundaries
from mindspeed_ift.data.sample import Sample
from tests.tiny_dataset import random_sample, sample

PAD = 7


def join(parts: list[Sample], length: int) -> Sample:
    """A neat-packed row, pads included."""
    ids = np.concatenate([part.input_ids for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    segments = np.repeat(np.arange(len(parts)) + 1, [len(part) for part in parts])
    pads = length - len(ids)
    return Sample(
        np.append(ids, np.full(pads, PAD)).astype(np.int32),
        np.append(labels, np.full(pads, -100)).astype(np.int32),
        np.append(segments, np.zeros(pads)).astype(np.int32),
    )


def targets(batch: Batch, row: int, start: int, length: int) -> list[tuple[int, int, int]]:
    """(position from start, token, label) of the learnt positions of a stretch."""
    return [
        (place - start, int(batch.tokens[row, place]), int(batch.labels[row, place]))
        for place in range(start, start + length)
        if batch.loss_mask[row, place]
    ]


def expected_targets(part: Sample) -> list[tuple[int, int, int]]:
    return [
        (place, int(part.input_ids[place]), int(part.labels[place + 1]))
        for place in range(len(part) - 1)
        if part.labels[place + 1] != -100
    ]


def test_fixed_length_by_hand() -> None:
    batch = FixedLength(6, PAD).collate([sample([1, 2, 3, 4], [-100, -100, 3, 4]), sample([5, 6], [5, 6])])
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 7, 7], [5, 6, 7, 7, 7, 7]]
    assert batch.labels.tolist() == [[0, 3, 4, 0, 0, 0], [6, 0, 0, 0, 0, 0]]
    assert batch.loss_mask.tolist() == [[0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert batch.boundaries is None and batch.learnt_tokens == 3
    assert {batch.tokens.dtype, batch.labels.dtype, batch.position_ids.dtype} == {torch.int64}
    assert batch.loss_mask.dtype == torch.float32


def test_weights_are_shifted_with_their_labels() -> None:
    """Of packed rows too, where no token predicts the first of the next sample."""
    weights = np.array([0, 0, 0.5, 0.25], np.float32)
    weighed = replace(sample([1, 2, 3, 4], [-100, -100, 3, 4], [1, 1, 2, 2]), loss_weights=weights)
    plain = sample([5, 6], [5, 6], [1, 1])
    batch = FixedLength(6, PAD).collate([weighed, plain])
    assert batch.loss_mask.tolist() == [[0, 0.5, 0.25, 0, 0, 0], [1, 0, 0, 0, 0, 0]] and batch.learnt_tokens == 3
    packed = Packed(6, PAD, StoredBoundaries()).collate([weighed, plain])
    assert packed.loss_mask.tolist() == [[0, 0, 0.25, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert packed.loss_mask.dtype == torch.float32


def test_padding_goes_by_position_not_by_value() -> None:
    """The end-of-turn token is learnt even when pads have its id."""
    batch = FixedLength(5, pad_id=9).collate([sample([1, 9, 9], [-100, 9, 9])])
    assert batch.labels.tolist() == [[9, 9, 0, 0, 0]] and batch.loss_mask.tolist() == [[1, 1, 0, 0, 0]]


def test_label_zero_is_learnt_like_any_other() -> None:
    batch = FixedLength(3, PAD).collate([sample([1, 0, 0], [-100, 0, 0])])
    assert batch.loss_mask.tolist() == [[1, 1, 0]]


@pytest.mark.parametrize(("lengths", "width"), [([3, 5], 8), ([8, 1], 8), ([9, 1], 12), ([1], 4)])
def test_dynamic_length_rounds_the_longest_up(lengths: list[int], width: int) -> None:
    mode = DynamicLength(seq_length=10, multiple=4, pad_id=PAD)
    samples = [sample(range(1, length + 1), range(1, length + 1)) for length in lengths]
    batch = mode.collate(samples)
    assert batch.tokens.shape == (len(lengths), width) and batch.learnt_tokens == sum(lengths) - len(lengths)


@pytest.mark.parametrize("length", [16, 20])
def test_full_row_learns_up_to_its_last_token(length: int) -> None:
    part = sample(range(1, 17), range(1, 17))
    batch = FixedLength(length, PAD).collate([part])
    assert targets(batch, 0, 0, length) == expected_targets(part)


def random_packs(seed: int, rows: int) -> tuple[list[list[Sample]], int]:
    """The samples of each row, and a length they all fit, with and without pads."""
    generator = np.random.default_rng(seed)
    packs = [
        [random_sample(generator, int(generator.integers(1, 4))) for _ in range(generator.integers(1, 5))]
        for _ in range(rows)
    ]
    return packs, max(sum(map(len, parts)) for parts in packs) + int(generator.integers(0, 3))


def stretches(packs: list[list[Sample]], length: int) -> list[tuple[int, int, int, Sample | None]]:
    """(row, from, to, sample) of each sample, and of the pads of a row, None."""
    found: list[tuple[int, int, int, Sample | None]] = []
    for row, parts in enumerate(packs):
        ends = np.cumsum([len(part) for part in parts]).tolist()
        found += [(row, end - len(part), end, part) for part, end in zip(parts, ends)]
        if ends[-1] < length:
            found.append((row, ends[-1], length, None))
    return found


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("reset_positions", [False, True])
def test_packed_rows_equal_their_samples(seed: int, rows: int, reset_positions: bool) -> None:
    packs, length = random_packs(seed, rows)
    mode = Packed(length, PAD, StoredBoundaries(), True, reset_positions)
    batch = mode.collate([join(parts, length) for parts in packs])
    for row, start, stop, part in stretches(packs, length):
        first = 0 if reset_positions else start
        assert batch.position_ids[row, start:stop].tolist() == list(range(first, first + stop - start))
        expected = [] if part is None else expected_targets(part)
        assert targets(batch, row, start, stop - start) == expected
        assert part is None or batch.tokens[row, start:stop].tolist() == part.input_ids.tolist()
    assert not batch.labels[batch.loss_mask == 0].any()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_boundaries_are_the_ends_of_samples_pads_and_rows(seed: int, rows: int) -> None:
    packs, length = random_packs(seed, rows)
    batch = Packed(length, PAD, StoredBoundaries()).collate([join(parts, length) for parts in packs])
    assert batch.boundaries is not None and batch.boundaries.dtype == torch.int32
    ends = [row * length + stop for row, _, stop, _ in stretches(packs, length)]
    assert batch.boundaries.tolist() == [0, *ends]
    assert batch.learnt_tokens == sum(len(expected_targets(part)) for parts in packs for part in parts)


def test_same_segment_number_on_both_sides_of_a_row_end() -> None:
    """Rows without pads, one sample each: number 1 ends a row and begins the next."""
    mode = Packed(2, PAD, StoredBoundaries(), reset_position_ids=True)
    batch = mode.collate([sample([1, 2], [1, 2], [1, 1]), sample([3, 4], [3, 4], [1, 1])])
    assert batch.boundaries is not None and batch.boundaries.tolist() == [0, 2, 4]
    assert batch.labels.tolist() == [[2, 0], [4, 0]] and batch.position_ids.tolist() == [[0, 1], [0, 1]]


def test_a_sample_that_begins_learnt_is_not_predicted_by_its_neighbour() -> None:
    row = sample([1, 2, 3, 4], [1, 2, 3, 4], [1, 1, 2, 2])
    inside = Packed(4, PAD, StoredBoundaries()).collate([row])
    assert inside.labels.tolist() == [[2, 0, 4, 0]]
    across = Packed(4, PAD, StoredBoundaries(), reset_attention_mask=False).collate([row])
    assert across.labels.tolist() == [[2, 3, 4, 0]] and across.boundaries is None


def test_pads_of_the_dataset_and_of_the_batch_are_one_segment() -> None:
    row = sample([1, 2, PAD], [1, 2, -100], [1, 1, 0])
    batch = Packed(6, PAD, StoredBoundaries(), reset_position_ids=True).collate([row])
    assert batch.boundaries is not None and batch.boundaries.tolist() == [0, 2, 6]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2, 3]]


def test_packed_rows_may_be_padded_to_the_longest() -> None:
    mode = Packed(100, PAD, EndOfDocument((9,), False), multiple=4, to_longest=True)
    batch = mode.collate([sample([1, 9, 2, 3, 9], [1, 9, 2, 3, 9]), sample([4], [4])])
    assert batch.tokens.shape == (2, 8)
    assert batch.boundaries is not None and batch.boundaries.tolist() == [0, 2, 5, 8, 9, 16]


def test_sample_without_a_learnt_token() -> None:
    batch = FixedLength(4, PAD).collate([sample([1, 2, 3], [-100, -100, -100])])
    assert batch.learnt_tokens == 0 and not batch.labels.any()


def test_only_the_first_token_is_labelled() -> None:
    """Nothing precedes it, so nothing is learnt."""
    assert FixedLength(2, PAD).collate([sample([1, 2], [1, -100])]).learnt_tokens == 0


def test_collate_leaves_the_samples_as_they_are() -> None:
    row = join([sample([1, 2], [-100, 2]), sample([3], [3])], 4)
    for values in (row.input_ids, row.labels, row.segments):
        assert values is not None
        values.setflags(write=False)
    Packed(4, PAD, StoredBoundaries()).collate([row])


@pytest.mark.parametrize(("length", "rounded"), [(0, 8), (1, 8), (8, 8), (9, 16)])
def test_round_up(length: int, rounded: int) -> None:
    assert round_up(length, 8) == rounded


def test_pads_are_no_real_tokens_and_cost_nothing() -> None:
    """Pads of the row, pads that the row came with, and the whole row where samples see each other."""
    parts = [sample([1, 2, 3], [1, 2, 3]), sample([4, 5], [4, 5])]
    fixed = FixedLength(8, PAD).collate(parts)
    assert (fixed.real_tokens, fixed.squared_lengths) == (5, 9 + 4)
    row, other = join(parts, 7), join(parts[:1], 3)
    packed = Packed(8, PAD, StoredBoundaries()).collate([row, other])
    assert (packed.real_tokens, packed.squared_lengths) == (5 + 3, 9 + 4 + 9)
    seen = Packed(8, PAD, StoredBoundaries(), reset_attention_mask=False).collate([row, other])
    assert (seen.real_tokens, seen.squared_lengths) == (5 + 3, 25 + 9)
    assert packed.at(torch.arange(4)).real_tokens == packed.real_tokens
