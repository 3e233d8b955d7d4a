"""Tensors written in some rectangles are read in any others; what is damaged, missing or no index is named."""

from __future__ import annotations

import itertools
import math
import pickle
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as torch_checkpoint
from torch import Tensor

from mindspeed_ift.checkpoint import index, megatron, sharded
from mindspeed_ift.checkpoint.names import Stage
from mindspeed_ift.checkpoint.sharded import Reader, Rectangle, cut
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import UserError

SHAPE = (6, 5)
WHOLE = torch.arange(30.0).view(SHAPE)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (1, 6), (4, 1), (2, 3, 4)])
def test_any_run_is_cut_into_rectangles_that_hold_it_in_order(shape: tuple[int, ...]) -> None:
    whole = torch.arange(math.prod(shape)).view(shape)
    for start, stop in itertools.combinations_with_replacement(range(whole.numel() + 1), 2):
        pieces = list(cut(shape, start, stop))
        assert len(pieces) <= 2 * len(shape) - 1
        found = [whole[tuple(slice(o, o + n) for o, n in zip(*piece))].flatten() for piece in pieces]
        assert torch.equal(torch.cat([torch.arange(0), *found]), torch.arange(start, stop))


def part(key: str, rows: slice, columns: slice = slice(None), whole: Tensor = WHOLE) -> Rectangle:
    """A rectangle of a matrix, with its values."""
    offset = (rows.start or 0, columns.start or 0)
    return Rectangle(key, tuple(whole.shape), offset, whole[rows, columns].clone())


def write(staging: Path, *of_ranks: list[Rectangle]) -> Path:
    """What some ranks write; a folder is read where it lies."""
    staging.mkdir()
    stored = []
    for rank, rectangles in enumerate(of_ranks):
        files, own = sharded.write_rectangles(staging, rank, rectangles)
        assert list(files) == [f"__{rank}_0.distcp"]
        stored += own
    assert set(index.write_index(staging, stored, 7)) == {".metadata", "metadata.json", "common.pt"}
    return staging


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three ranks: the first two rows, and of the others the left and the right; whole the other way round."""
    ranks = [
        [part("w", slice(0, 2)), part("decoder.layers.1.w", slice(0, 6))],
        [part("w", slice(2, 6), slice(0, 3))],
        [part("w", slice(2, 6), slice(3, 5)), Rectangle("v", (4,), (0,), torch.tensor([1, 2, 3, 4]).bfloat16())],
    ]
    return write(tmp_path / "iter_0000007", *ranks)


def test_every_rectangle_is_read_from_whatever_was_written(folder: Path) -> None:
    reader = Reader(folder)
    for top, bottom in itertools.combinations(range(7), 2):
        for left, right in itertools.combinations(range(6), 2):
            wanted = Rectangle("w", SHAPE, (top, left), torch.full((bottom - top, right - left), -1.0))
            reader.fill(wanted)
            assert torch.equal(wanted.data, WHOLE[top:bottom, left:right])
    assert torch.equal(reader.tensor("w"), WHOLE)
    assert "v" in reader and reader.tensor("v").dtype is torch.bfloat16
    of_one = Rectangle("v", (4,), (1,), torch.zeros(2))
    reader.fill(of_one)
    assert of_one.data.tolist() == [2.0, 3.0]


@pytest.mark.parametrize("rows", [4, 6, 9])
def test_pads_of_a_vocabulary_come_and_go(folder: Path, rows: int) -> None:
    """Written with 6 rows; a rank that holds but pads gets zeros too."""
    reader, expected = Reader(folder), torch.cat([WHOLE, torch.zeros(3, 5)])[:rows]
    whole = Rectangle("w", (rows, 5), (0, 0), torch.full((rows, 5), -1.0), padded=True)
    reader.fill(whole)
    assert torch.equal(whole.data, expected)
    for row in range(rows):
        one = Rectangle("w", (rows, 5), (row, 0), torch.full((1, 5), -1.0), padded=True)
        reader.fill(one)
        assert torch.equal(one.data[0], expected[row])


def test_what_does_not_fit_is_named(folder: Path) -> None:
    reader = Reader(folder)
    with pytest.raises(UserError, match=r"w has shape \(6, 5\), the model \(5, 5\)"):
        reader.fill(Rectangle("w", (5, 5), (0, 0), torch.zeros(5, 5)))
    with pytest.raises(UserError, match=r"w has shape \(6, 5\), the model \(6, 4\)"):
        reader.fill(Rectangle("w", (6, 4), (0, 0), torch.zeros(6, 4), padded=True))
    with pytest.raises(UserError, match="the tensor x is missing; .* flags.$"):
        reader.tensor("x")
    with pytest.raises(UserError, match="exp_avg.w is missing; .* --no-load-optim goes on without it"):
        reader.tensor("optimizer.state.exp_avg.w")


def test_who_has_nothing_writes_no_file(tmp_path: Path) -> None:
    assert sharded.write_rectangles(tmp_path, 1, iter([])) == ({}, []) and not list(tmp_path.iterdir())


def test_a_part_that_nobody_wrote_is_missed(tmp_path: Path) -> None:
    reader = Reader(write(tmp_path / "iter_0000007", [part("w", slice(0, 2))], [part("w", slice(3, 6))]))
    reader.fill(Rectangle("w", SHAPE, (0, 0), torch.zeros(2, 5)))
    with pytest.raises(UserError, match="parts of the tensor w are missing"):
        reader.tensor("w")


def test_a_stage_has_its_own_numbers(tmp_path: Path) -> None:
    names = ["decoder.layers.1.mlp.w", "decoder.layers.10.mlp.linear_fc1.layer_norm_weight"]
    names += ["decoder.final_layernorm.weight"]
    names += ["embedding.word_embeddings.weight", "optimizer.state.exp_avg.decoder.layers.1.mlp.w"]
    reader = Reader(write(tmp_path / "iter_0000007", [part(name, slice(0, 6)) for name in names]))
    assert list(reader.stage(Stage(range(1, 2), False, False))) == ["decoder.layers.0.mlp.w"]
    assert list(reader.stage(Stage(range(0, 2), last=False))) == [
        "decoder.layers.1.mlp.w",
        "embedding.word_embeddings.weight",
    ]
    assert list(reader.stage(Stage(range(8, 11), first=False))) == [
        "decoder.layers.2.pre_mlp_layernorm.weight",
        "decoder.final_layernorm.weight",
    ]


def test_torch_reads_it_too(folder: Path) -> None:
    content = {"w": torch.zeros(SHAPE), "v": torch.zeros(4, dtype=torch.bfloat16)}
    torch_checkpoint.load(content, checkpoint_id=folder)
    assert torch.equal(content["w"], WHOLE) and content["v"].tolist() == [1, 2, 3, 4]


def test_we_read_what_torch_writes(tmp_path: Path) -> None:
    torch_checkpoint.save({"w": WHOLE, "n": 3}, checkpoint_id=tmp_path / "theirs")
    reader = Reader(tmp_path / "theirs")
    assert torch.equal(reader.tensor("w"), WHOLE)
    with pytest.raises(UserError, match="the tensor n is missing"):
        reader.tensor("n")


class Surprise:
    """Runs code of others where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("surprise",)


@pytest.mark.parametrize("content", [pickle.dumps(Surprise()), pickle.dumps([1]), b"cut"], ids=["code", "other", "cut"])
def test_an_index_that_is_none_is_refused_and_runs_nothing(
    folder: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / ".metadata").write_bytes(content)
    with pytest.raises(UserError, match=r"\.metadata cannot be read .*; take an older checkpoint"):
        Reader(folder)
    (folder / ".metadata").unlink()
    with pytest.raises(UserError, match=r"\.metadata is missing"):
        Reader(folder)
    assert "surprise" not in capsys.readouterr().out


def test_code_beside_a_tensor_is_not_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(folder / "__1_0.distcp", "wb") as file:
        torch.save(Surprise(), file)
    with pytest.raises(UserError, match="__1_0.distcp cannot be read"):
        Reader(folder).tensor("w")
    assert "surprise" not in capsys.readouterr().out


def test_checksums_are_compared_where_asked(tmp_path: Path) -> None:
    staging = megatron.begin_save(tmp_path, 7)
    files, stored = sharded.write_rectangles(staging, 0, [part("w", slice(0, 6))])
    files |= index.write_index(staging, stored, 7)
    sizes = asdict(Architecture.from_preset("qwen3-0.6b"))
    facts = {
        "architecture": sizes,
        "layout": {},
        "stage_layers": [],
        "dtype": "float32",
        "distributed_optimizer": False,
    }
    megatron.commit(staging, tmp_path, 7, {**facts, "iteration": 7}, files)
    folder = megatron.iteration_folder(tmp_path, 7)
    path = folder / "__0_0.distcp"
    path.write_bytes(path.read_bytes().replace(WHOLE.numpy().tobytes()[4:8], b"\0\0\0\1", 1))
    assert not torch.equal(Reader(folder).tensor("w"), WHOLE)
    with pytest.raises(UserError, match="__0_0.distcp is not what was written .its checksum differs."):
        Reader(folder, check=True).tensor("w")
