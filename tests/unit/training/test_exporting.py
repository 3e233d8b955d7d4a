"""A Hugging Face folder of each checkpoint, and a line where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_ift.checkpoint.convert import convert
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.tuning import TuneConfig
from mindspeed_ift.training.exporting import export
from mindspeed_ift.training.sources import find_sources
from tests.training_runs import make_hugging_face_model


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with a checkpoint."""
    source = make_hugging_face_model(tmp_path / "hf", tied=True, vocab_size=100)
    convert(ConvertConfig("hf", "mg", source, tmp_path / "run"))
    return tmp_path / "run"


def test_the_folder_of_a_step_is_written_anew(run: Path) -> None:
    target = run / "mg2hf_iteration1"
    for _ in range(2):
        assert export(run / "iter_0000001", None) == f"saved {target} (Hugging Face)"
        (target / "left").write_text("of a run before")
    (target / "left").unlink()
    assert (target / "config.json").is_file() and (target / "model.safetensors").is_file()


def test_a_failure_is_a_line_and_ends_nothing(run: Path) -> None:
    shard = run / "iter_0000001/mp_rank_00/model_optim_rng.pt"
    shard.write_bytes(shard.read_bytes()[:-1])
    told = export(run / "iter_0000001", None)
    assert told.startswith("notice: no Hugging Face folder of iter_0000001: ") and "size or checksum differ" in told
    assert [path.name for path in run.glob("*hf*")] == []


def test_a_checkpoint_of_weights_alone_begins_a_training_and_continues_none(run: Path) -> None:
    config = parse(
        TuneConfig, ["--load", str(run), "--train-iters", "1", "--data-path", "x"], program="tune", description=""
    )
    sources = find_sources(config)
    assert sources.weights == run / "iter_0000001" and sources.resume is None
