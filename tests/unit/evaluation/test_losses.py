"""Losses of records that share rows are those of Hugging Face's model on each record alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3ForCausalLM

from mindspeed_ift.data.sample import IGNORED_LABEL, Sample
from mindspeed_ift.evaluation.losses import record_losses
from mindspeed_ift.inference.load import load
from mindspeed_ift.parallel import groups as process_groups
from tests.tolerances import TWENTY_STEPS_LOSS
from tests.training_runs import make_hugging_face_model


def _samples() -> list[Sample]:
    """Of 1 to 40 tokens; every third learns all its tokens, one nothing."""
    generator = np.random.default_rng(4)
    samples = []
    for number, length in enumerate([1, 40, 7, 13, 22, 2, 31]):
        ids = generator.integers(0, 51, length).astype(np.int32)
        labels = ids.copy()
        labels[: [0, length // 2, length][number % 3]] = IGNORED_LABEL
        samples.append(Sample(ids, labels))
    return samples


@pytest.mark.parametrize("seq_length", [16, 64])
def test_packed_records_have_the_losses_of_hugging_face(tmp_path: Path, seq_length: int) -> None:
    """With rows shorter than some records, and with rows of several."""
    folder = make_hugging_face_model(tmp_path / "hf", tied=True, vocab_size=51)
    reference = Qwen3ForCausalLM.from_pretrained(folder).float()
    loaded = load(folder)
    try:
        losses, learnt, likeliest = record_losses(loaded, _samples(), seq_length, 0)
    finally:
        process_groups.stop(loaded.groups)
    assert learnt.sum() > 0 and (learnt == 0).any() and likeliest.sum() > 0
    for sample, loss, count, best in zip(_samples(), losses, learnt, likeliest, strict=True):
        labels = torch.from_numpy(sample.labels.astype(np.int64))[1:]
        assert count == int((labels != IGNORED_LABEL).sum())
        if not count:
            assert loss == 0
            continue
        with torch.no_grad():
            logits = reference(torch.from_numpy(sample.input_ids.astype(np.int64))[None]).logits[0, :-1]
        assert best == int((logits.argmax(-1) == labels).sum())
        expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum")
        assert loss == pytest.approx(float(expected), **TWENTY_STEPS_LOSS)
