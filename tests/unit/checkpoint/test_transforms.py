"""Fusing and splitting: each transform against a hand-made case, and there and back for every tensor parallel size."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mindspeed_ift.checkpoint import transforms
from mindspeed_ift.checkpoint.transforms import (
    COPY,
    EXPERTS_IN,
    EXPERTS_OUT,
    GATE_UP,
    QKV,
    VOCABULARY,
    Pieces,
    Transform,
    from_shards,
    to_shard,
)
from tests.tiny_model import tiny_architecture

# Four heads in two groups of size 2; a vocabulary of 5.
MODEL = tiny_architecture(num_layers=1, hidden_size=3, ffn_hidden_size=8, kv_channels=2, vocab_size=5)


def rows(start: int, count: int) -> torch.Tensor:
    """``count`` rows that say their number, three columns each."""
    return torch.arange(start, start + count).float()[:, None].repeat(1, 3)


def numbers(tensor: torch.Tensor) -> list[int]:
    return tensor[:, 0].int().tolist()


def shard(transform: Transform, tensors: list[torch.Tensor], size: int, rank: int, padded: int = 8) -> torch.Tensor:
    return to_shard(transform, tensors, MODEL, tensor_size=size, tensor_rank=rank, padded_vocab=padded)


def whole(pieces: list[Pieces]) -> list[torch.Tensor]:
    return [one.joined() for one in pieces]


def test_every_group_has_its_queries_its_key_and_its_value() -> None:
    query, key, value = rows(0, 8), rows(100, 4), rows(200, 4)
    whole = [0, 1, 2, 3, 100, 101, 200, 201, 4, 5, 6, 7, 102, 103, 202, 203]
    assert numbers(shard(QKV, [query, key, value], 1, 0)) == whole
    assert numbers(shard(QKV, [query, key, value], 2, 1)) == whole[8:]


def test_each_rank_has_its_part_of_gate_and_up() -> None:
    gate, up = rows(0, 8), rows(100, 8)
    assert numbers(shard(GATE_UP, [gate, up], 2, 1)) == [4, 5, 6, 7, 104, 105, 106, 107]


def test_the_vocabulary_is_padded_with_zeros() -> None:
    words = rows(1, 5)
    assert numbers(shard(VOCABULARY, [words], 2, 0)) == [1, 2, 3, 4]
    assert numbers(shard(VOCABULARY, [words], 2, 1)) == [5, 0, 0, 0]


def test_columns_are_split_and_norms_are_not() -> None:
    matrix, norm = torch.arange(8.0).view(2, 4), torch.arange(3.0)
    assert shard(Transform("copy", 1), [matrix], 2, 1).tolist() == [[2, 3], [6, 7]]
    assert torch.equal(shard(COPY, [norm], 2, 1), norm)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    ("transform", "shapes"),
    [
        (QKV, [(8, 3), (4, 3), (4, 3)]),
        (GATE_UP, [(8, 3), (8, 3)]),
        (VOCABULARY, [(5, 3)]),
        (COPY, [(3,)]),
        (Transform("copy", 1), [(3, 8)]),
    ],
    ids=["qkv", "gate_up", "vocabulary", "norm", "columns"],
)
def test_there_and_back(transform: Transform, shapes: list[tuple[int, ...]], size: int) -> None:
    tensors = [torch.randn(shape, generator=torch.Generator().manual_seed(3)) for shape in shapes]
    shards = [shard(transform, tensors, size, rank) for rank in range(size)]
    back = from_shards(transform, shards, MODEL)
    assert [one.shape for one in back] == shapes
    assert all(map(torch.equal, whole(back), tensors))
    assert all(map(torch.equal, (torch.cat(list(one.rows())) for one in back), tensors))


def test_parts_side_by_side_come_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "_BLOCK", 2 * 8 * 4)  # bytes of two rows of eight columns
    tensor = rows(0, 5).repeat(1, 3)[:, :8]
    (pieces,) = from_shards(Transform("copy", 1), tensor.chunk(2, 1), MODEL)
    assert [len(block) for block in pieces.rows()] == [2, 2, 1]
    assert torch.equal(torch.cat(list(pieces.rows())), tensor)


@pytest.mark.parametrize(
    ("transform", "shape", "stored_shape"), [(EXPERTS_IN, (8, 3), (2, 3, 2, 8)), (EXPERTS_OUT, (3, 8), (2, 8, 3))]
)
def test_whole_experts_of_a_checkpoint_of_any_layout(
    transform: Transform, shape: tuple[int, int], stored_shape: tuple[int, ...]
) -> None:
    model = dataclasses.replace(MODEL, num_experts=2, moe_router_topk=2, moe_ffn_hidden_size=8)
    count = 4 if transform is EXPERTS_IN else 2
    tensors = [torch.randn(shape, generator=torch.Generator().manual_seed(number)) for number in range(count)]
    stored = to_shard(transform, tensors, model, tensor_size=1, tensor_rank=0, padded_vocab=8).view(stored_shape)
    back = whole(from_shards(transform, [stored], model))
    assert len(back) == len(tensors) and all(map(torch.equal, back, tensors))


def test_a_shard_has_memory_of_its_own() -> None:
    """A view would be saved with the whole matrix behind it."""
    matrix = torch.zeros(4, 8)
    for transform in (COPY, Transform("copy", 1), VOCABULARY):
        part = to_shard(transform, [matrix], MODEL, tensor_size=1, tensor_rank=0, padded_vocab=4)
        assert part.data_ptr() != matrix.data_ptr()
        assert part.untyped_storage().nbytes() == part.nbytes


def test_experts_lie_in_memory_one_after_the_other() -> None:
    """As the grouped product wants them: inputs by outputs, gate before up; and there and back for a split expert."""
    model = dataclasses.replace(MODEL, num_experts=2, moe_router_topk=1, moe_ffn_hidden_size=4, norm_topk_prob=False)
    gates, ups, downs = ([torch.randn(shape) for _ in range(2)] for shape in ((4, 3), (4, 3), (3, 4)))
    inputs = [gates[0], ups[0], gates[1], ups[1]]
    for size in (1, 2):
        first = [
            to_shard(EXPERTS_IN, inputs, model, tensor_size=size, tensor_rank=rank, padded_vocab=0)
            for rank in range(size)
        ]
        second = [
            to_shard(EXPERTS_OUT, downs, model, tensor_size=size, tensor_rank=rank, padded_vocab=0)
            for rank in range(size)
        ]
        assert first[0].shape == (3, 2 * 8 // size) and second[0].shape == (2 * 4 // size, 3)
        rows = slice(4 // size * (size - 1), None)
        expected = torch.cat([gates[1][rows], ups[1][rows]]).T
        assert torch.equal(first[-1].view(2, 3, -1)[1], expected)
        assert torch.equal(second[-1].view(2, -1, 3)[1], downs[1][:, rows].T)
        assert all(map(torch.equal, whole(from_shards(EXPERTS_IN, first, model)), inputs))
        assert all(map(torch.equal, whole(from_shards(EXPERTS_OUT, second, model)), downs))
