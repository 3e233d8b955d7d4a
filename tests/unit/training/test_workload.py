"""What a plan reckons with: the rows of a dataset as training will see them, or what flags say."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.plan import PlanConfig
from mindspeed_ift.training.workload import Workload, workload
from tests.training_runs import make_datasets, make_hugging_face_model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Mode of training -> dataset."""
    return make_datasets(tmp_path_factory.mktemp("work"))


def look(*flags: str) -> Workload:
    return workload(parse(PlanConfig, ["--preset", "qwen3-8b", *flags], program="plan"), devices=2)


def test_rows_are_those_of_training(data: dict[str, Path]) -> None:
    import numpy as np

    from mindspeed_ift.data.dataset import InstructionDataset

    samples = InstructionDataset(data["fixed"])
    lengths = np.asarray(samples.lengths, np.int64)
    learnt = sum(samples[number].learnt_tokens for number in range(len(samples))) / len(samples)
    fixed = look("--data-path", str(data["fixed"]), "--seq-length", "128", "--global-batch-size", "8")
    assert fixed.work.rows == 48 and fixed.work.longest == 128 and fixed.config.optimizer.train_iters == 6
    assert fixed.work.real_tokens == pytest.approx(lengths.mean()) and fixed.work.learnt_tokens == pytest.approx(learnt)
    assert fixed.work.squared_lengths == pytest.approx((lengths**2).mean())
    dynamic = look("--data-path", str(data["fixed"]), "--seq-length", "128", "--no-pad-to-seq-lengths")
    assert dynamic.work.longest == -(-lengths.max() // 8) * 8 < 128
    rows = ["--data-path", str(data["packed"]), "--seq-length", "128", "--reset-attention-mask", "--train-iters", "7"]
    packed = look(*rows)
    assert packed.config.optimizer.train_iters == 7 and packed.work.longest == 128
    assert packed.work.rows * packed.work.real_tokens == pytest.approx(lengths.sum())
    assert packed.work.rows * packed.work.squared_lengths == pytest.approx((lengths**2).sum())


def test_flags_are_believed_where_there_are_no_data() -> None:
    alone = look(
        "--seq-length", "4096", "--sample-length", "300", "--learnt-share", "0.5", "--lr-warmup-iters", "100"
    ).work
    assert (alone.rows, alone.longest, alone.real_tokens) == (None, 4096, 300)
    assert (alone.learnt_tokens, alone.squared_lengths) == (150, 300**2)
    packed = look("--seq-length", "4096", "--sample-length", "300", "--reset-attention-mask").work
    assert (packed.real_tokens, packed.squared_lengths) == (4096, 4096 * 300)
    assert look().work.real_tokens == 4096


def test_weights_need_not_be_here(tmp_path: Path) -> None:
    lost = ["--load", str(tmp_path / "none"), "--enable-hf2mg-convert"]
    assert look(*lost).architecture == look().architecture
    adapters = ["--lora-target-modules", "linear_qkv", "--lora-load", str(tmp_path / "run"), "--lora-ckpt-filter"]
    assert look(*lost, *adapters).config.lora.active
    folder = make_hugging_face_model(tmp_path / "hf", tied=True, vocab_size=400)
    config = parse(PlanConfig, ["--load", str(folder), "--enable-hf2mg-convert"], program="plan")
    found = workload(config, devices=1)
    assert found.architecture.vocab_size == 400 and str(folder) in found.origin


def test_a_model_that_is_spelled_out_has_the_vocabulary_of_qwen3() -> None:
    sizes = "--num-layers 3 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4 --noop-layers 2"
    found = workload(parse(PlanConfig, sizes.split(), program="plan"), devices=1)
    assert found.architecture.vocab_size == 151_936 and found.architecture.num_layers == 2
