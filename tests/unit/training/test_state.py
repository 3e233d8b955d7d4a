"""What a resume needs, saved and loaded on one rank; what does not fit is refused, what cannot be written leaves nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.config.errors import RunError, UserError
from mindspeed_ift.config.layout import LayoutFlags
from mindspeed_ift.config.tuning import OptimizerFlags
from mindspeed_ift.devices.device import current
from mindspeed_ift.parallel.groups import Groups
from mindspeed_ift.training import state
from mindspeed_ift.training.optimizer import build_optimizer, build_schedule, wrap
from tests.tiny_model import tiny_model, world_of_one

FLAGS = OptimizerFlags(lr=1e-2, train_iters=9)


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    """A world of one."""
    with world_of_one() as started:
        yield started


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

    def save(self, folder: Path, **facts: Any) -> None:
        """As step 3."""
        state.save(
            folder,
            3,
            stages=[self.stage],
            optimizer=self.optimizer,
            schedule=self.schedule,
            groups=self.groups,
            device=current(),
            distributed_optimizer=self.distributed,
            facts=facts,
        )

    def load(self, folder: Path) -> None:
        """Weights, then all else."""
        state.load_model(folder, [self.stage], self.groups)
        state.load_training(
            folder,
            self.optimizer,
            self.schedule,
            self.groups,
            current(),
            distributed_optimizer=self.distributed,
            load_random=True,
        )


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("distributed", [False, True], ids=["whole", "distributed"])
def test_a_loaded_run_goes_on_to_the_bit(tmp_path: Path, groups: Groups, bf16: bool, distributed: bool) -> None:
    """Weights, main weights that bf16 has lost, moments, schedule, random state."""
    first, second = (Run(groups, bf16=bf16, distributed=distributed) for _ in "ab")
    for seed in (1, 2):
        first.step(seed)
    second.step(5)  # something to overwrite
    first.save(tmp_path, seed=7)
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


def test_a_file_holds_its_tensors_and_not_the_buffers_behind_them(tmp_path: Path, groups: Groups) -> None:
    """Parameters are views of one buffer under the distributed optimizer; so are its main weights."""
    run = Run(groups, distributed=True)
    run.step(1)
    run.save(tmp_path)
    needed = state.bytes_of_save([run.stage], run.optimizer, groups, True)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.pt"))
    assert needed <= size < needed + 60_000  # names and padding of the archive
    weights = megatron.read_shard(tmp_path / "iter_0000003", 0, 0, 1)["model"]
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in weights.values())


def test_no_room_is_found_out_before_anything_is_written(
    tmp_path: Path, groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "free_bytes", lambda _: 1000)
    with pytest.raises(RunError, match=r"no space left for --save .*: 0.1 MB are needed, 0.0 MB are free"):
        Run(groups).save(tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_failed_write_leaves_the_former_checkpoint(
    tmp_path: Path, groups: Groups, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    run, real, calls = Run(groups), megatron.write_shard, []

    def write_shard(*arguments: Any) -> megatron.Files:
        calls.append(arguments)
        if len(calls) == fails_at:
            raise RunError("cannot write it (No space left on device)")
        return real(*arguments)

    run.save(tmp_path)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    monkeypatch.setattr(megatron, "write_shard", write_shard)
    with pytest.raises(RunError, match="No space left on device"):
        run.save(tmp_path)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    assert megatron.latest_folder(tmp_path) == tmp_path / "iter_0000003"


def change(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), encoding="utf-8")


def test_what_does_not_fit_is_refused(tmp_path: Path, groups: Groups) -> None:
    Run(groups).save(tmp_path)
    folder = tmp_path / "iter_0000003"
    architecture = megatron.read_manifest(folder)["architecture"]  # type: ignore[index]
    change(folder, architecture=architecture | {"rotary_base": 1e4})
    with pytest.raises(UserError, match="another architecture than the flags describe"):
        Run(groups).load(folder)
    change(folder, architecture=architecture, layout={"tensor": 2, "pipeline": 1, "data": 1})
    with pytest.raises(
        UserError, match="saved with TP 2 PP 1, this run has TP 1 PP 1; use the saved layout, or convert"
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


def test_optimizer_state_of_other_parameters_is_refused(groups: Groups) -> None:
    """Others in number or in shape; one of shape [H] would go into one of [H, H] without a word."""
    run = Run(groups)
    saved = state._optimizer_state(run.optimizer)
    before = [entry["main"].clone() for entry in saved]
    for wrong in (saved[1:], saved[::-1], [{"main": torch.zeros(1)} for _ in saved]):
        with pytest.raises(UserError, match=r"^iter_0000003: its optimizer state is of .* --no-load-optim$"):
            state._restore_optimizer(run.optimizer, wrong, Path("iter_0000003"))
    after = [entry["main"] for entry in state._optimizer_state(run.optimizer)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
