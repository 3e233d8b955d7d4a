"""Sixteen weaknesses that were measured in MindSpeed-LLM, each a test of what happens here instead.

docs/numerics.md lists them with what else proves each, on several ranks too.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mindspeed_ift.cli.preprocess import main as preprocess
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout, LayoutFlags
from mindspeed_ift.config.tuning import OptimizerFlags
from mindspeed_ift.data.batch import Batch, FixedLength, Packed
from mindspeed_ift.data.boundaries import StoredBoundaries
from mindspeed_ift.data.overlong import Overlong, cut_sample
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample
from mindspeed_ift.devices.device import current
from mindspeed_ift.model.build import ModelOptions, build_model
from mindspeed_ift.parallel.context.plan import ends_of_rows, ring_plan
from mindspeed_ift.parallel.context.split import local_positions
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.training.continuing import KEY
from mindspeed_ift.training.optimizer import build_optimizer, build_schedule, wrap
from mindspeed_ift.training.step import StepReport, train_step
from tests.planned import planned
from tests.tiny_dataset import sample
from tests.tiny_model import tiny_architecture, tiny_model
from tests.tiny_tokenizer import make_tiny_tokenizer

PAD = 7
SHARED = {
    "ring of 2": Layout(context=2),
    "ring of 4": Layout(context=4),
    "ulysses of 4": Layout(context=4, ulysses=4),
    "hybrid of 2 x 2": Layout(context=4, ulysses=2),
    "gathered keys of 2": Layout(context=2, gather_keys=True),
}


def packed_row(*lengths: int, learnt: bool = True) -> Sample:
    """A neat-packed row of samples of these lengths, each token with an id of its own, all but the first learnt."""
    ids = [8 + place % 22 for place in range(sum(lengths))]
    labels = [token if learnt else IGNORED_LABEL for token in ids]
    for start in np.cumsum([0, *lengths[:-1]]):
        labels[start] = IGNORED_LABEL
    return sample(ids, labels, [number for number, length in enumerate(lengths, 1) for _ in range(length)])


def packed(*rows: Sample, length: int = 64) -> Batch:
    """A micro-batch of packed rows, as training makes it."""
    return Packed(length, PAD, StoredBoundaries(), reset_position_ids=True).collate(rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and twelve conversations of two turns."""
    folder = tmp_path_factory.mktemp("traps")
    make_tiny_tokenizer(folder / "tokenizer")
    turns = [("user", "one"), ("assistant", "two"), ("user", "three")]
    records = [
        {
            "messages": [
                {"role": role, "content": text} for role, text in (*turns, ("assistant", "four " * (number + 1)))
            ]
        }
        for number in range(12)
    ]
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return folder


def prepare(data: Path, prefix: Path, *flags: str, records: str = "records.jsonl") -> str:
    line = [
        "--input",
        str(data / records),
        "--tokenizer-name-or-path",
        str(data / "tokenizer"),
        "--prompt-type",
        "qwen",
    ]
    preprocess([*line, "--output-prefix", str(prefix), *flags])
    return str(prefix)


class Run:
    """A model of some layers with its optimizer and schedule."""

    def __init__(self, groups: Groups, layers: int = 2) -> None:
        flags = OptimizerFlags(lr=1e-2, train_iters=9, clip_grad=0.0)
        self.groups = groups
        stage = build_model(tiny_architecture(num_layers=layers), ModelOptions(padded_vocab=32), groups)
        generator = torch.Generator().manual_seed(4)
        for parameter in stage.parameters():
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
        self.model = wrap([stage], LayoutFlags())
        self.optimizer = build_optimizer(self.model, flags, LayoutFlags())
        self.schedule = build_schedule(self.optimizer, flags)

    def step(self, batches: Sequence[Batch]) -> StepReport:
        return train_step(self.model, self.optimizer, self.schedule, batches, self.groups, current())


@pytest.mark.parametrize("layout", SHARED.values(), ids=SHARED)
def test_trap_1_no_target_is_lost_or_wrong_where_a_row_is_shared(layout: Layout) -> None:
    whole = packed(packed_row(5, 17, 3, 20, 19), packed_row(1, 2, 61))
    pairs = []
    for rank in range(layout.context):
        part = whole.at(local_positions(64, layout, rank))
        for row, place in part.loss_mask.nonzero().tolist():
            pairs.append((row, int(part.tokens[row, place]), int(part.labels[row, place])))
    # Ids count up along a row (8 to 29, again and again), so the right target is the next number.
    assert all(label == 8 + (token - 8 + 1) % 22 for _, token, label in pairs)
    assert len(pairs) == whole.learnt_tokens == (64 - 5) + (64 - 3)


def test_trap_2_rows_of_a_micro_batch_do_not_see_each_other(groups: Groups) -> None:
    by_hand = packed(packed_row(100, 100), packed_row(100, 80, 70), length=256)
    assert by_hand.boundaries is not None
    assert by_hand.boundaries.tolist() == [0, 100, 200, 256, 356, 436, 506, 512]
    model = tiny_model(groups)
    clean = packed(packed_row(7, 9), packed_row(6, 10), length=20)
    poisoned = dataclasses.replace(clean, tokens=clean.tokens.clone())
    poisoned.tokens[0, :7] = 3  # the first sample of the first row
    one, other = (model(batch.tokens, batch.position_ids, batch.boundaries) for batch in (clean, poisoned))
    assert not torch.equal(one[0, :7], other[0, :7])
    assert torch.equal(one[0, 7:], other[0, 7:]) and torch.equal(one[1], other[1])


def test_trap_3_the_ring_takes_packed_rows_of_any_lengths() -> None:
    whole, pairs = packed(packed_row(5, 17, 3, 20, 19), packed_row(1, 2, 40)), 0
    ends = ends_of_rows(whole.boundaries, 2, 64)
    for rank in range(4):
        ring = ring_plan(ends, 2, 64, 4, rank)
        pairs += sum((stop - start) * (stop - start + 1) // 2 for start, stop in zip(ring.home, ring.home[1:]))
        for part in (part for step in ring.away for part in step):
            pairs += (part.queries.stop - part.queries.start) * (part.keys.stop - part.keys.start)
    lengths = np.diff(ends)
    assert sorted(lengths) == sorted([5, 17, 3, 20, 19, 1, 2, 40, 21])  # the last are pads
    assert pairs == (lengths * (lengths + 1) // 2).sum()


def test_trap_4_hybrid_sharing_drops_no_token_of_uneven_samples() -> None:
    layout, whole = SHARED["hybrid of 2 x 2"], packed(packed_row(21, 22, 21))
    parts = [whole.at(local_positions(64, layout, rank)) for rank in range(4)]
    held = torch.cat([local_positions(64, layout, rank) for rank in range(4)])
    assert held.sort().values.tolist() == list(range(64))
    assert sum(part.learnt_tokens for part in parts) == whole.learnt_tokens == 61


def test_trap_5_the_end_of_a_turn_ends_no_sample(data: Path, tmp_path: Path) -> None:
    """qwen ends every turn with its end of document."""
    flags = ["--seq-length", "256", "--reset-attention-mask", "--reset-position-ids"]
    packing = ["--pack", "--seq-length", "256"]
    marked = planned(prepare(data, tmp_path / "marked", *packing, "--append-eod"), *flags)
    stored = planned(prepare(data, tmp_path / "stored", *packing, "--neat-pack"), *flags)
    for one in (marked, stored):
        assert isinstance(one.mode, Packed)
        rows = [one.mode.boundaries.segments(one.dataset[number]) for number in range(len(one.dataset))]
        assert sum(len(set(row.tolist()) - {0}) for row in rows) == 12
    with pytest.raises(UserError, match="does not say where the samples of a packed row end"):
        planned(prepare(data, tmp_path / "unmarked", *packing), *flags)


def test_trap_6_positions_that_go_on_through_a_row_are_said(data: Path, tmp_path: Path) -> None:
    prefix = prepare(data, tmp_path / "rows", "--pack", "--neat-pack", "--seq-length", "256")
    both = ["--seq-length", "256", "--reset-attention-mask", "--reset-position-ids"]
    assert "notice" not in planned(prefix, *both).describe()
    assert "positions go on through a packed row, up to 255" in planned(prefix, *both[:-1]).describe()
    assert "the samples of a packed row see each other" in planned(prefix, *both[:2]).describe()


def test_trap_7_tokens_weigh_alike_in_long_and_short_micro_batches_and_none_gives_no_nan(groups: Groups) -> None:
    long, short, nothing = packed(packed_row(40)), packed(packed_row(5)), packed(packed_row(30, learnt=False))
    apart = Run(groups).step([long, short, nothing])
    together = Run(groups).step([packed(packed_row(40), packed_row(5))])
    assert apart.learnt_tokens == together.learnt_tokens == 43
    assert apart.loss == pytest.approx(together.loss, rel=1e-6)
    assert apart.gradient_norm == pytest.approx(together.gradient_norm, rel=1e-5)
    assert Run(groups).step([nothing]).loss == 0.0


class Made(TorchDispatchMode):
    """Keeps count of the largest tensor of truth values that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, torch.Tensor) and one.dtype is torch.bool:
                self.largest = max(self.largest, one.numel())
        return result


def test_trap_8_rows_of_one_sample_need_no_mask_of_their_length_squared(groups: Groups) -> None:
    batch = FixedLength(256, PAD).collate([sample(range(8, 28), range(8, 28))])
    assert batch.boundaries is None
    with Made() as made:
        Run(groups).step([batch])
    assert made.largest <= 2 * 256


@pytest.mark.parametrize(
    ("flags", "world", "multiple"),
    [
        ("--tensor-model-parallel-size 16 --sequence-parallel", 16, 16),
        ("--context-parallel-size 8", 8, 16),
        ("--context-parallel-size 8 --tensor-model-parallel-size 4 --sequence-parallel --pad-to-multiple-of 3", 32, 96),
    ],
)
def test_trap_9_dynamic_rows_are_as_long_as_the_layout_needs(
    data: Path, tmp_path: Path, flags: str, world: int, multiple: int
) -> None:
    model = "--num-attention-heads 16 --num-query-groups 16 --ffn-hidden-size 32 --hidden-size 32"
    prefix = prepare(data, tmp_path / "single")
    one = planned(prefix, "--no-pad-to-seq-lengths", *model.split(), *flags.split(), world=world)
    for number in range(12):
        length = one.mode.collate([one.dataset[number]]).tokens.shape[1]
        assert length % multiple == 0 and length - len(one.dataset[number]) < multiple
        local = len(local_positions(length, one.layout, 0))
        assert local * one.layout.context == length and local % (one.layout.tensor if "sequence" in flags else 1) == 0


def test_trap_10_data_rebuilt_under_the_same_name_are_noticed(data: Path, tmp_path: Path) -> None:
    """And no order of the old data lies about on the disk."""
    prefix = prepare(data, tmp_path / "rebuilt")
    before = planned(prefix)
    files = sorted(path.name for path in tmp_path.iterdir())
    folder = tmp_path / "run" / "iter_0000004"
    folder.mkdir(parents=True)
    (tmp_path / "run/latest_checkpointed_iteration.txt").write_text("4\n", encoding="utf-8")
    manifest = {"architecture": dataclasses.asdict(before.architecture), "lora": None, KEY: before.data_facts}
    manifest |= dict.fromkeys(("layout", "stage_layers", "dtype", "distributed_optimizer", "iteration"))
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert planned(prefix, "--load", str(tmp_path / "run")).sources.resume == folder
    lines = (data / "records.jsonl").read_text(encoding="utf-8").splitlines()
    (data / "fewer.jsonl").write_text("\n".join(lines[:11]), encoding="utf-8")
    prepare(data, tmp_path / "rebuilt", records="fewer.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "run") == files
    with pytest.raises(UserError, match="was trained on other data.* samples 12 -> 11"):
        planned(prefix, "--load", str(tmp_path / "run"))
    assert planned(prefix, "--load", str(tmp_path / "run"), "--no-check-data").sources.resume == folder


def test_trap_11_no_training_sample_is_ever_evaluated(data: Path, tmp_path: Path) -> None:
    one = planned(prepare(data, tmp_path / "split"), "--split", "70,30,0", "--global-batch-size", "5")
    training = one.training_samples(0, shuffle=True).numbered(0, 20 * len(one.train))
    validation = one.validation_samples(0).numbered(0, 20 * len(one.valid))
    trained, evaluated = ({number for rows in taken for number, _ in rows} for taken in (training, validation))
    assert trained == set(one.train) and evaluated == set(one.valid) and not trained & evaluated


def test_trap_12_a_long_sample_that_ends_unlearnt_is_cut() -> None:
    labels = [-100, -100, 3, 4, -100, -100, -100, 8, -100, -100]
    for room in range(1, 10):
        cut = cut_sample(sample(range(1, 11), labels), room, Overlong.CUT_TURNS)
        assert 1 <= len(cut) <= room and cut.labels.tolist() == [labels[number - 1] for number in cut.input_ids]


def test_trap_13_samples_alone_in_their_rows_may_have_their_mask_reset(data: Path, tmp_path: Path) -> None:
    """Each is one segment, and its pads another: the same tokens are learnt at the same positions."""
    prefix = prepare(data, tmp_path / "single")
    plain, reset = planned(prefix), planned(prefix, "--reset-attention-mask", "--reset-position-ids")
    for number in range(12):
        one, other = (each.mode.collate([each.dataset[number]]) for each in (plain, reset))
        length = len(plain.dataset[number])
        assert other.boundaries is not None and other.boundaries.tolist() == [0, length, one.tokens.shape[1]]
        for name in ("tokens", "labels", "loss_mask"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert torch.equal(one.position_ids[:, :length], other.position_ids[:, :length])


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each time that the host asks for what a tensor holds, boundaries apart, which lie on the host."""
    asked: list[str] = []

    def telling(name: str, ask: Callable[..., Any]) -> Callable[..., Any]:
        def told(tensor: torch.Tensor, *args: Any) -> Any:
            if tensor.dtype is not torch.int32:
                asked.append(name)
            return ask(tensor, *args)

        return told

    for name in ("tolist", "item", "numpy", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, telling(name, getattr(torch.Tensor, name)))
    return asked


def test_trap_14_the_host_does_not_wait_for_the_device_in_any_layer(groups: Groups, waits: list[str]) -> None:
    """Forward and backward, whatever the number of layers and micro-batches."""
    counts = {}
    for layers in (1, 4):
        run = Run(groups, layers)
        for micro_batches in (1, 3):
            batches = [packed(packed_row(5, 17, 9)) for _ in range(micro_batches)]
            run.step(batches)  # the optimizer makes its state
            waits.clear()
            run.model[0].zero_grad_buffer()
            loss = sum(
                run.model[0](one.tokens, one.position_ids, one.boundaries, labels=one.labels, loss_mask=one.loss_mask)
                for one in batches
            )
            loss.backward()
            counts[layers, micro_batches] = len(waits)
            assert math.isfinite(loss) and waits, "this does wait"
    assert set(counts.values()) == {0}


def test_trap_15_several_datasets_are_trained_on_by_their_weights(data: Path, tmp_path: Path) -> None:
    """From any position on, which a resume has."""
    first, second = prepare(data, tmp_path / "first"), prepare(data, tmp_path / "second")
    samples = planned("1", first, "3", second).training_samples(0, shuffle=True)
    taken = [number for rows in samples.numbered(0, 40) for number, _ in rows]
    assert [number for rows in samples.numbered(17, 23) for number, _ in rows] == taken[17:]
    ours = np.cumsum([samples.dataset.located(number)[0] == first for number in taken])
    assert ours[-1] == 10 and all(abs(count - place / 4) < 1 for place, count in enumerate(ours, 1))
    assert {samples.dataset.located(number)[1] for number in taken} == set(range(12))


def test_trap_16_no_target_is_lost_between_the_pieces_of_the_loss(groups: Groups) -> None:
    batch, found = packed(packed_row(20, 23), packed_row(31)), {}
    for size in (None, 1, 7, 16, 71):
        model = tiny_model(groups, loss_chunk_size=size)
        for number, parameter in enumerate(model.parameters()):
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(number))
        logits = model(batch.tokens, batch.position_ids, batch.boundaries)[..., :30]
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none")
        loss = model(batch.tokens, batch.position_ids, batch.boundaries, labels=batch.labels, loss_mask=batch.loss_mask)
        found[size] = float(loss)
        assert found[size] == pytest.approx(float((expected * batch.loss_mask.flatten()).sum()), rel=1e-6)
    assert batch.learnt_tokens == 71 and len(found) == 5
