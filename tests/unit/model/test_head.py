"""The loss over the vocabulary, piece by piece, against torch's cross entropy on whole logits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.live_tensors import LiveTensors
from mindspeed_ift.config.layout import LayoutFlags
from mindspeed_ift.devices.kernels import reference
from mindspeed_ift.model import head
from mindspeed_ift.parallel import groups as process_groups
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.training.optimizer import wrap
from tests.tiny_model import tiny_architecture
from tests.tolerances import ATTENTION_BF16, GRADIENTS

S, B, H, VOCAB, PADDED = 9, 3, 8, 37, 40


def _inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(S, B, H, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(PADDED, H, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, VOCAB, (B, S), generator=generator)
    weights = torch.rand(B, S, generator=generator)
    return hidden, weight, labels, weights.where(weights > 0.4, 0.0)


def _loss(groups: Groups, hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, chunk: int | None) -> Tensor:
    return head.loss_sum(
        hidden,
        weight,
        labels,
        weights,
        vocab_size=VOCAB,
        groups=groups.collection,
        sequence_parallel=False,
        chunk_size=chunk,
    )


def _plain(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    logits = nn.functional.linear(hidden.transpose(0, 1), weight).float()[..., :VOCAB]
    each = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return (each * weights).sum()


@pytest.fixture(params=["kept", "computed again", "in tiles"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The weight's gradient held from the forward pass, or the logits computed twice, also of some rows at once."""
    if request.param != "kept":
        monkeypatch.setattr(head, "_KEPT_BYTES", 0)
    if request.param == "in tiles":
        in_tiles(monkeypatch)
    return request.param


def in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 positions and 7 rows."""
    monkeypatch.setattr(head, "_KEPT_BYTES", 0)
    monkeypatch.setattr(head, "_TILE_POSITIONS", 4)
    monkeypatch.setattr(head, "_PIECE_BYTES", 4 * 4 * 7)


@pytest.mark.parametrize("chunk", [None, 1, 4, 1000])
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_weighted_loss_and_gradients(groups: Groups, kept: str, chunk: int | None, factor: float) -> None:
    """Weights of positions, padding of the vocabulary and what the sum is multiplied by all count."""
    ours, theirs = _inputs(), _inputs()
    loss, expected = _loss(groups, *ours, chunk), _plain(*theirs)
    (loss * factor).backward()
    (expected * factor).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        assert one.grad is not None and torch.allclose(one.grad, other.grad, **GRADIENTS)
    assert not ours[1].grad[VOCAB:].any()


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient(groups: Groups, kept: str, frozen: int) -> None:
    ours, theirs = _inputs(), _inputs()
    ours[frozen].requires_grad_(False)
    _loss(groups, *ours, 4).backward()
    _plain(*theirs).backward()
    assert ours[frozen].grad is None
    assert torch.allclose(ours[1 - frozen].grad, theirs[1 - frozen].grad, **GRADIENTS)


@pytest.mark.parametrize("rows", [reference._ROWS, 7])
def test_bf16_rounds_once(groups: Groups, kept: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of many pieces are summed in fp32, all rows at once or some."""
    monkeypatch.setattr(reference, "_ROWS", rows)
    ours, theirs = _inputs(torch.bfloat16), _inputs(torch.bfloat16)
    _loss(groups, *ours, 2).backward()
    _plain(*theirs).backward()
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        assert one.grad.dtype is torch.bfloat16
        assert torch.allclose(one.grad, other.grad, atol=ATTENTION_BF16, rtol=ATTENTION_BF16)


@pytest.mark.parametrize("tied", [True, False])
def test_computed_again_it_adds_to_megatrons_buffer(
    groups: Groups, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    """Two micro-batches through a model whose embedding is, or is not, also the output layer."""
    from mindspeed_ift.model.build import ModelOptions, build_model

    sizes = {"num_layers": 1, "ffn_hidden_size": 32, "num_attention_heads": 2, "num_query_groups": 1, "kv_channels": 8}
    architecture = tiny_architecture(**sizes, vocab_size=VOCAB, tied=tied)
    buffers = []
    for limit in (head._KEPT_BYTES, 0):
        monkeypatch.setattr(head, "_KEPT_BYTES", limit)
        process_groups.seed_random_streams(1)
        torch.manual_seed(1)
        model = build_model(architecture, ModelOptions(padded_vocab=PADDED), groups)
        (wrapped,) = wrap([model], LayoutFlags())
        wrapped.zero_grad_buffer()
        labels, mask = _inputs()[2:]
        for shift in (0, 1):
            tokens = (labels + shift) % VOCAB
            wrapped(tokens, torch.arange(S).expand(B, S), None, labels=labels, loss_mask=mask).backward()
        buffers.append({name: parameter.main_grad.clone() for name, parameter in model.named_parameters()})
    for name, expected in buffers[0].items():
        assert expected.any() and torch.allclose(buffers[1][name], expected, **GRADIENTS), name


def test_the_peak_of_memory(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of the learnt hidden states, a piece and the one before, and the stand-in for the weight's gradient."""
    positions, width, rows, piece = 1024, 32, 8192, 8
    monkeypatch.setattr(head, "_KEPT_BYTES", 0)
    monkeypatch.setattr(reference, "_ROWS", 256)
    hidden = torch.randn(positions, 1, width).bfloat16().requires_grad_()
    weight = nn.Parameter(torch.randn(rows, width).bfloat16())
    weight.main_grad = torch.zeros(rows, width)
    labels, mask = torch.randint(0, rows, (1, positions)), torch.ones(1, positions)
    with LiveTensors() as live:
        head.loss_sum(
            hidden,
            weight,
            labels,
            mask,
            vocab_size=rows,
            groups=groups.collection,
            sequence_parallel=False,
            chunk_size=piece,
        ).backward()
    hidden_bytes, weight_bytes, piece_bytes = hidden.nbytes, weight.nbytes, piece * rows * 4
    # Labels and weights of the positions, their places, and the gradient of the hidden states are small beside these.
    assert weight_bytes < live.peak < 4 * hidden_bytes + max(weight_bytes, 3 * piece_bytes) + 20_000
    assert live.peak < positions * rows * 2 / 8, "far from whole logits, of which the plain one has several"
    assert float(weight.main_grad.abs().sum()) > 0


def test_tiles_cover_all_and_touch_the_weight_seldom() -> None:
    positions, rows = 10_000, 151_936
    tiles = list(head._tiles(positions, rows, None))
    sizes = [(piece.stop - piece.start, block.stop - block.start) for piece, block in tiles]
    assert sum(tall * wide for tall, wide in sizes) == positions * rows
    assert max(tall * wide for tall, wide in sizes) * 4 <= head._PIECE_BYTES
    uneven = list(head._tiles(4_082, rows, None))
    assert all(block.start % 128 == 0 and block.stop in (rows, block.start + 4096) for _, block in uneven)
    assert len({(piece.start, block.start) for piece, block in tiles}) == len(tiles)
    assert sum(block.start == 0 for _, block in tiles) == 3, "each row of the weight is read once for 4,096 positions"
    assert {block.stop for _, block in head._tiles(10, 40, 3)} == {40}, "as many positions as were asked for, all rows"


def both_ranks(monkeypatch: pytest.MonkeyPatch, work: Callable[[int], Any]) -> list[Any]:
    """What two tensor ranks make of ``work(rank)``, one after the other: what one waits for is put together from both."""
    answers: list[Tensor] = []

    class Waits(Exception):
        pass

    while True:
        asked, found = [], []
        for rank in range(2):
            known = iter(answers)

            def reduced(
                values: Tensor,
                operation: dist.ReduceOp,
                _: dist.ProcessGroup,
                known: Iterator[Tensor] = known,
                asked: list[tuple[Tensor, dist.ReduceOp]] = asked,
            ) -> Tensor:
                for answer in known:
                    return values.copy_(answer)
                asked.append((values.clone(), operation))
                raise Waits

            monkeypatch.setattr(head, "_reduced", reduced)
            with contextlib.suppress(Waits):
                found.append(work(rank))
        if not asked:
            return found
        (one, operation), (other, _) = asked
        answers.append(torch.maximum(one, other) if operation == dist.ReduceOp.MAX else one + other)


@pytest.mark.parametrize("tiled", [False, True])
def test_two_tensor_ranks(groups: Groups, monkeypatch: pytest.MonkeyPatch, tiled: bool) -> None:
    """Each holds half of the rows: one loss, and the gradients of the whole weight."""
    if tiled:
        in_tiles(monkeypatch)
    hidden, weight, labels, weights = _inputs()
    expected = _plain(hidden, weight, labels, weights)
    expected.backward()
    learnt = weights > 0
    arguments = [hidden.detach().transpose(0, 1)[learnt], labels[learnt], weights[learnt]]

    def work(rank: int) -> tuple[Tensor, Tensor, Tensor]:
        states, half = arguments[0].requires_grad_(), weight.detach().chunk(2)[rank].requires_grad_()
        vocabulary = head._Vocabulary(VOCAB, rank * PADDED // 2, None, groups.collection.tp)
        loss = head._LossOfPieces.apply(states, half, *arguments[1:], vocabulary)
        return loss, *torch.autograd.grad(loss, (states, half))

    found = both_ranks(monkeypatch, work)
    assert [one[0].item() for one in found] == pytest.approx([expected.item()] * 2, rel=1e-6)
    states, rows = found[0][1] + found[1][1], torch.cat([one[2] for one in found])
    assert torch.allclose(states, hidden.grad.transpose(0, 1)[learnt], **GRADIENTS)
    assert torch.allclose(rows, weight.grad, **GRADIENTS)


def test_each_position(groups: Groups, monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    """Its loss, and whether the label has the largest logit, of one rank and of two."""
    hidden, weight, labels, weights = _inputs()
    logits = nn.functional.linear(hidden.transpose(0, 1), weight)[..., :VOCAB].detach()
    labels[:, ::2] = logits.argmax(-1)[:, ::2]
    learnt = weights > 0
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    expected = torch.stack([(losses * weights)[learnt], (logits.argmax(-1) == labels)[learnt].float()])
    assert 0 < expected[1].sum() < learnt.sum()
    rest = {"vocab_size": VOCAB, "groups": groups.collection, "sequence_parallel": False, "chunk_size": None}
    found = head.loss_sum(hidden, weight, labels, weights, each=True, **rest)
    assert torch.allclose(found, expected, **GRADIENTS) and torch.equal(found[1], expected[1])

    def work(rank: int) -> tuple[Tensor, Tensor, Tensor]:
        vocabulary = head._Vocabulary(VOCAB, rank * PADDED // 2, None, groups.collection.tp)
        with torch.no_grad():
            return head._losses(hidden.transpose(0, 1)[learnt], weight.chunk(2)[rank], labels[learnt], vocabulary)

    for alone, _, best in both_ranks(monkeypatch, work):
        assert torch.allclose(alone * weights[learnt], expected[0], **GRADIENTS) and torch.equal(best, expected[1])
