"""What a resume needs, saved and loaded on one rank; what does not fit is refused, what cannot be written leaves nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.checkpoint.names import Stage
from mindspeed_ift.checkpoint.sharded import Reader
from mindspeed_ift.config.errors import RunError, UserError
from mindspeed_ift.config.layout import LayoutFlags
from mindspeed_ift.config.tuning import OptimizerFlags
from mindspeed_ift.devices.device import current
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.training import rank_files, saving, state
from mindspeed_ift.training.optimizer import build_optimizer, build_schedule, wrap
from mindspeed_ift.training.saving import Saver
from tests.tiny_model import tiny_model

FLAGS = OptimizerFlags(lr=1e-2, train_iters=9)


class Run:
    """A model with its optimizer and schedule."""

    def __init__(self, groups: Groups, *, bf16: bool = False, distributed: bool = False) -> None:
        self.groups, self.distributed = groups, distributed
        layout = LayoutFlags(use_distributed_optimizer=distributed)
        self.stage = tiny_model(groups, dtype=torch.bfloat16 if bf16 else torch.float32)
        self.model = wrap([self.stage], layout)
        flags = OptimizerFlags(lr=1e-2, train_iters=9, bf16=bf16)
        self.optimizer = build_optimizer(self.model, flags, layout)
        self.schedule = build_schedule(self.optimizer, flags)

    def step(self, seed: int) -> None:
        """An update with gradients drawn from ``seed``."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.stage.parameters():
            parameter.main_grad.copy_(torch.randn(parameter.shape, generator=generator))
        self.optimizer.step()
        self.schedule.step(increment=1)

    @property
    def trained(self) -> state.Trained:
        """All that a checkpoint is made of."""
        return state.Trained(
            [self.stage], self.optimizer, self.schedule, self.groups, current(), distributed_optimizer=self.distributed
        )

    def save(self, folder: Path, ckpt_format: str = "torch_dist", **facts: Any) -> None:
        """As step 3."""
        state.save(Saver(folder, self.groups), 3, self.trained, ckpt_format, facts)

    def load(self, folder: Path) -> None:
        """Weights, then all else."""
        state.load_model(folder, [self.stage], self.groups)
        state.load_training(folder, self.trained, load_random=True)


FORMATS = pytest.mark.parametrize("ckpt_format", ["torch_dist", "torch"])


@FORMATS
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("distributed", [False, True], ids=["whole", "distributed"])
def test_a_loaded_run_goes_on_to_the_bit(
    tmp_path: Path, groups: Groups, ckpt_format: str, bf16: bool, distributed: bool
) -> None:
    """Weights, main weights that bf16 has lost, moments, schedule, random state."""
    first, second = (Run(groups, bf16=bf16, distributed=distributed) for _ in "ab")
    for seed in (1, 2):
        first.step(seed)
    second.step(5)  # something to overwrite
    first.save(tmp_path, ckpt_format, seed=7)
    drawn = torch.rand(3)
    second.load(tmp_path / "iter_0000003")
    assert torch.equal(torch.rand(3), drawn)
    assert second.optimizer.param_groups[0]["lr"] == first.optimizer.param_groups[0]["lr"] < FLAGS.lr
    for seed in (3, 4):
        first.step(seed)
        second.step(seed)
    for ours, theirs in zip(first.stage.parameters(), second.stage.parameters(), strict=True):
        assert ours.dtype is (torch.bfloat16 if bf16 else torch.float32) and torch.equal(ours, theirs)
    manifest = megatron.read_manifest(tmp_path / "iter_0000003")
    assert manifest is not None and manifest["seed"] == 7 and manifest["padded_vocab_size"] == 32
    assert manifest["dtype"] == ("bfloat16" if bf16 else "float32") and manifest["stage_layers"] == [[0, 2]]
    assert manifest["format"] == ckpt_format


def test_a_stage_is_read_under_the_names_of_the_model(tmp_path: Path, groups: Groups) -> None:
    """Of one without parallelism: what conversion asks for."""
    run = Run(groups)
    run.save(tmp_path)
    found = Reader(tmp_path / "iter_0000003").stage(Stage(range(2)))
    expected = dict(run.stage.named_parameters())
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@FORMATS
def test_before_the_first_step_there_is_nothing_but_weights(tmp_path: Path, groups: Groups, ckpt_format: str) -> None:
    first, second = Run(groups), Run(groups)
    first.save(tmp_path, ckpt_format)
    second.load(tmp_path / "iter_0000003")
    for run in (first, second):
        run.step(1)
    assert all(map(torch.equal, first.stage.parameters(), second.stage.parameters()))


@pytest.mark.parametrize("before", [False, True], ids=["whole", "distributed"])
def test_the_distributed_optimizer_may_be_turned_on_and_off(tmp_path: Path, groups: Groups, before: bool) -> None:
    first, second = (Run(groups, bf16=True, distributed=one) for one in (before, not before))
    first.step(1)
    second.step(5)
    first.save(tmp_path)
    second.load(tmp_path / "iter_0000003")
    for run in (first, second):
        run.step(2)
    assert all(map(torch.equal, first.stage.parameters(), second.stage.parameters()))


@FORMATS
def test_a_file_holds_its_tensors_and_not_the_buffers_behind_them(
    tmp_path: Path, groups: Groups, ckpt_format: str
) -> None:
    """Parameters are views of one buffer under the distributed optimizer; so are its main weights."""
    run = Run(groups, distributed=True)
    planned = state.bytes_of_save(run.trained, ckpt_format)
    run.step(1)
    run.save(tmp_path, ckpt_format)
    needed = state.bytes_of_save(run.trained, ckpt_format)
    size = sum(path.stat().st_size for path in tmp_path.rglob("mp_rank*/*" if ckpt_format == "torch" else "*.distcp"))
    assert needed == planned and needed <= size < needed + 130_000  # names and padding of the archives


@FORMATS
def test_no_room_is_found_out_before_anything_is_written(
    tmp_path: Path, groups: Groups, monkeypatch: pytest.MonkeyPatch, ckpt_format: str
) -> None:
    monkeypatch.setattr(saving, "free_bytes", lambda _: 1000)
    with pytest.raises(RunError, match=r"no space left for --save .*: 0.1 MB are needed, 0.0 MB are free"):
        Run(groups).save(tmp_path / "run", ckpt_format)
    assert not list(tmp_path.iterdir())


@FORMATS
@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_a_failed_write_leaves_the_former_checkpoint(
    tmp_path: Path, groups: Groups, monkeypatch: pytest.MonkeyPatch, fails_at: int, ckpt_format: str
) -> None:
    """Of a file of weights, of the optimizer, of random states, of the index."""
    run, real, calls = Run(groups), megatron.write_file, []

    def write_file(*arguments: Any) -> megatron.Files:
        calls.append(arguments)
        if len(calls) == fails_at:
            raise RunError("cannot write it (No space left on device)")
        return real(*arguments)

    run.save(tmp_path, ckpt_format)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    monkeypatch.setattr(megatron, "write_file", write_file)
    if ckpt_format == "torch" and fails_at == 4:
        run.save(tmp_path, ckpt_format)
        assert len(calls) == 3
        return
    with pytest.raises(RunError, match="No space left on device"):
        run.save(tmp_path, ckpt_format)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    assert megatron.latest_folder(tmp_path) == tmp_path / "iter_0000003"


def change(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), encoding="utf-8")


def test_what_does_not_fit_is_refused(tmp_path: Path, groups: Groups) -> None:
    Run(groups).save(tmp_path, "torch")
    folder = tmp_path / "iter_0000003"
    architecture = megatron.read_manifest(folder)["architecture"]  # type: ignore[index]
    change(folder, architecture=architecture | {"rotary_base": 1e4})
    with pytest.raises(UserError, match="another architecture than the flags describe"):
        Run(groups).load(folder)
    change(folder, architecture=architecture, layout={"tensor": 2, "pipeline": 1, "data": 1})
    with pytest.raises(
        UserError, match="saved with TP 2 PP 1, this run has TP 1 PP 1; use the saved layout .*, or convert"
    ):
        Run(groups).load(folder)
    change(folder, layout={"tensor": 1, "pipeline": 1, "data": 4}, distributed_optimizer=True)
    for distributed in (True, False):
        with pytest.raises(
            UserError, match="split over 4 replicas .with --use-distributed-optimizer.; .*--no-load-optim"
        ):
            Run(groups, distributed=distributed).load(folder)
    change(folder, distributed_optimizer=False)  # whole optimizer state serves any number of replicas
    Run(groups).load(folder)


def test_a_damaged_part_is_named(tmp_path: Path, groups: Groups) -> None:
    run = Run(groups)
    run.save(tmp_path)
    folder = tmp_path / "iter_0000003"
    path = folder / "__0_0.distcp"
    content = path.read_bytes()
    path.write_bytes(content[:-100] + bytes(100))
    message = f"{path} is not what was written (its checksum differs)"
    assert state.changed_file(folder, groups, False) == message
    with pytest.raises(UserError, match="checksum differs.; take an older checkpoint"):
        run.load(folder)


def test_optimizer_state_of_other_parameters_is_refused(groups: Groups) -> None:
    """Others in number or in shape; one of shape [H] would go into one of [H, H] without a word."""
    run = Run(groups)
    saved = rank_files.optimizer_entries(run.optimizer)
    before = [entry["main"].clone() for entry in saved]
    for wrong in (saved[1:], saved[::-1], [{"main": torch.zeros(1)} for _ in saved]):
        with pytest.raises(UserError, match=r"^iter_0000003: its optimizer state is of .* --no-load-optim$"):
            rank_files.restore(run.optimizer, wrong, Path("iter_0000003"))
    after = [entry["main"] for entry in rank_files.optimizer_entries(run.optimizer)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
