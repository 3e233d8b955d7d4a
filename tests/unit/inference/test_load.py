"""A folder in, a model out: whatever kind of folder, in whatever layout it was saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mindspeed_ift.checkpoint.convert import convert
from mindspeed_ift.config.convert import ConvertConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.layout import Layout
from mindspeed_ift.inference.load import _spread, load
from mindspeed_ift.parallel import groups as process_groups
from tests.tiny_model import world_of_one
from tests.training_runs import make_hugging_face_model
from tests.unit.training.test_state import Run


@pytest.fixture(autouse=True)
def _leave_the_world():  # noqa: ANN202
    """`load` starts a world of one for the life of its process."""
    yield
    if torch.distributed.is_initialized():
        process_groups.parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_kind_of_folder_gives_the_same_model(tmp_path: Path, tied: bool) -> None:
    source = make_hugging_face_model(tmp_path / "hf", tied=tied, vocab_size=51)
    layout = {"target_tensor_parallel_size": 2, "target_pipeline_parallel_size": 2, "make_vocab_size_divisible_by": 4}
    convert(ConvertConfig("hf", "mg", source, tmp_path / "mg", **layout))
    tokens = torch.arange(20)[None]
    logits = []
    for folder in (source, tmp_path / "mg", tmp_path / "mg/iter_0000001"):
        loaded = load(folder)
        assert not loaded.model.training and loaded.facts["tokenizer"] == str(source)
        with torch.no_grad():
            logits.append(loaded.model(tokens, tokens, None))
        _end()
    assert logits[0].shape == (1, 20, 51) and torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


def test_a_checkpoint_of_any_layout_gives_the_model_that_was_saved(tmp_path: Path) -> None:
    with world_of_one() as groups:
        run = Run(groups)
        run.step(1)
        run.save(tmp_path, tokenizer=None)
        tokens = torch.arange(20)[None]
        with torch.no_grad():
            expected = run.stage.eval()(tokens, tokens, None)
    loaded = load(tmp_path)
    with torch.no_grad():
        found = loaded.model(tokens, tokens, None)
    assert torch.equal(found, expected[..., : found.shape[-1]]) and found.shape[-1] == 30


def test_layers_that_do_not_divide_leave_the_ends_of_a_pipeline_with_fewer(tmp_path: Path) -> None:
    """They hold the embeddings. More ranks than layers are refused before they meet."""
    assert _spread(94, 4) == (23, 24, 24, 23) and _spread(5, 3) == (2, 2, 1) and _spread(6, 2) == (3, 3)
    folder = make_hugging_face_model(tmp_path, tied=True, vocab_size=51)
    with pytest.raises(UserError, match="--pipeline-model-parallel-size 3 is more than the 2 layers; give less"):
        load(folder, Layout(pipeline=3))


def _end() -> None:
    process_groups.parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--load {tmp_path} is neither a Hugging Face folder nor a Megatron"):
        load(tmp_path)
