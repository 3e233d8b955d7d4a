"""Checkpoint folders: whole or absent, what they are checked for, what is said of damage."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.errors import RunError, UserError
from mindspeed_ift.config.layout import Layout

PATHS = ["mp_rank_00/model_optim_rng.pt", "mp_rank_01/model_optim_rng.pt"]
MANIFEST = {
    "architecture": asdict(Architecture.from_preset("qwen3-0.6b")),
    "layout": {"tensor": 2, "pipeline": 1, "data": 1},
    "stage_layers": [[0, 2]],
    "dtype": "float32",
    "distributed_optimizer": False,
    "iteration": 3,
}


def write(directory: Path, iteration: int = 3, fill: float = 1.0) -> Path:
    """A checkpoint of two tensor ranks."""
    staging = megatron.begin_save(directory, iteration)
    files: megatron.Files = {}
    for rank in range(2):
        files |= megatron.save_file(staging, PATHS[rank], {"model": {"w": torch.full((4,), fill + rank)}})
    megatron.commit(staging, directory, iteration, {**MANIFEST, "iteration": iteration}, files)
    return megatron.iteration_folder(directory, iteration)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path)
    assert folder.name == "iter_0000003" and megatron.latest_folder(tmp_path) == folder
    assert (tmp_path / megatron.TRACKER).read_text() == "3\n"
    shard = megatron.read_file(folder, PATHS[1])
    assert torch.equal(shard["model"]["w"], torch.full((4,), 2.0))
    manifest = megatron.read_manifest(folder)
    assert manifest is not None and sorted(manifest["files"]) == PATHS
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, megatron.TRACKER}


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (Layout(2), "mp_rank_01"),
        (Layout(2, 2), "mp_rank_01_000"),
        (Layout(2, 1, 2, expert=4), "mp_rank_01_003"),
        (Layout(2, 2, 2, expert=4), "mp_rank_01_000_003"),
    ],
)
def test_stages_and_experts_are_in_the_name_when_they_are_split(layout: Layout, name: str) -> None:
    assert megatron.shard_path(layout, 1, 0, 3, "other.pt") == f"{name}/other.pt"


def test_the_same_step_done_again_replaces_the_former(tmp_path: Path) -> None:
    write(tmp_path)
    folder = write(tmp_path, fill=5.0)
    assert float(megatron.read_file(folder, PATHS[0])["model"]["w"][0]) == 5.0
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, megatron.TRACKER}


def test_what_a_killed_save_left_is_no_checkpoint_and_does_not_disturb_the_next(tmp_path: Path) -> None:
    staging = megatron.begin_save(tmp_path, 3)
    megatron.save_file(staging, "mp_rank_00/left.pt", {"model": {}})
    megatron.staging_folder(tmp_path, 2).mkdir()
    assert megatron.latest_folder(tmp_path) is None and not list(tmp_path.glob("iter_*"))
    folder = write(tmp_path)
    assert not list(folder.glob("*/left.pt")) and not list(tmp_path.glob(".iter_*"))


def test_abandoned_leaves_nothing(tmp_path: Path) -> None:
    staging = megatron.begin_save(tmp_path / "run", 3)
    megatron.save_file(staging, PATHS[0], {"model": {}})
    megatron.abandon_save(staging)
    assert not (tmp_path / "run").exists()
    write(tmp_path / "run")
    megatron.abandon_save(megatron.begin_save(tmp_path / "run", 4))
    assert megatron.latest_folder(tmp_path / "run") == tmp_path / "run/iter_0000003"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing: the checkpoint is not complete, or of another layout"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "not what was written .size or checksum differ."),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"\x80\x3f", b"\x80\x3e", 1)), "size or checksum"),
    ],
    ids=["missing", "cut", "one bit"],
)
def test_damaged_files_are_named(tmp_path: Path, damage, message: str) -> None:  # noqa: ANN001
    folder = write(tmp_path)
    path = folder / "mp_rank_00/model_optim_rng.pt"
    damage(path)
    with pytest.raises(UserError, match=f"{path} .*{message}.*; take an older"):
        megatron.read_file(folder, PATHS[0])
    megatron.read_file(folder, PATHS[1])


def test_a_file_without_checksum_that_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "mp_rank_00" / megatron.MODEL_FILE
    path.parent.mkdir()
    path.write_bytes(b"no archive")
    with pytest.raises(UserError, match=f"{path} cannot be read .*; take an older"):
        megatron.read_file(tmp_path, PATHS[0])


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "mp_rank_00" / megatron.MODEL_FILE
    path.parent.mkdir()
    torch.save({"model": Surprise()}, path)
    with pytest.raises(UserError, match="cannot be read"):
        megatron.read_file(tmp_path, PATHS[0])


class Surprise:
    """Runs when it is unpickled, unless only weights are taken."""

    def __reduce__(self) -> tuple:
        return sys.exit, (3,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("three", "holds 'three', not the number of a step"),
        ("", "holds '', not the number"),
        ("²", "holds '²', not the number"),
        ("9", "names iter_0000009, which is not there .there: iter_0000003.; write another number"),
    ],
)
def test_a_tracker_that_names_no_checkpoint(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path)
    (tmp_path / megatron.TRACKER).write_text(text)
    with pytest.raises(UserError, match=message):
        megatron.latest_folder(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged; take an older"),
        ("[]", "architecture is missing"),
        ("3", "is damaged"),
        ("{}", "architecture"),
        (json.dumps({**MANIFEST, "architecture": {}}), "not the manifest of a checkpoint of this version .*num_layers"),
        (json.dumps({**MANIFEST, "files": [1]}), "of this version"),
    ],
)
def test_a_manifest_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    folder = write(tmp_path)
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=message):
        megatron.read_manifest(folder)
    (folder / "manifest.json").unlink()
    assert megatron.read_manifest(folder) is None


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """In a process that may write no file over 100 kB, which the system answers like a full disk."""
    program = (
        "import pathlib, resource, sys, torch\n"
        "from mindspeed_ift.checkpoint import megatron\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (100000, {resource.RLIM_INFINITY}))\n"
        "staging = megatron.begin_save(pathlib.Path(sys.argv[1]), 1)\n"
        "try:\n    megatron.save_file(staging, 'mp_rank_00/model_optim_rng.pt', {'w': torch.zeros(100000)})\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    name, _, message = done.stdout.strip().partition(" ")
    assert name == RunError.__name__ and message.endswith("(File too large); free some space, or give another folder")
    assert "mp_rank_00/model_optim_rng.pt" in message
    assert not list(tmp_path.glob("iter_*"))


def three(directory: Path) -> list[Path]:
    """Checkpoints of steps 9, 10 and 11, newest first."""
    return [write(directory, iteration) for iteration in (9, 10, 11)][::-1]


def test_checkpoints_are_those_up_to_the_tracker(tmp_path: Path) -> None:
    assert megatron.checkpoints(tmp_path) == []
    newest, middle, oldest = three(tmp_path)
    (tmp_path / "iter_notes").mkdir()
    assert megatron.checkpoints(tmp_path) == [newest, middle, oldest]
    (tmp_path / megatron.TRACKER).write_text("10\n")
    assert megatron.checkpoints(tmp_path) == [middle, oldest]


def test_without_its_tracker_a_folder_is_known_by_its_newest_checkpoint(tmp_path: Path) -> None:
    """Of ours: those of others may be half written."""
    newest, *others = three(tmp_path)
    (tmp_path / megatron.TRACKER).unlink()
    (tmp_path / "iter_0000012").mkdir()
    assert megatron.checkpoints(tmp_path) == [newest, *others]


def test_damage_is_told_without_reading_what_lies_there(tmp_path: Path) -> None:
    newest, middle, oldest = three(tmp_path)
    shard = "mp_rank_01/model_optim_rng.pt"
    assert [megatron.damage(one) for one in (newest, middle, oldest)] == [None] * 3
    (newest / shard).unlink()
    assert megatron.damage(newest) == f"{newest / shard} is missing"
    size = (middle / shard).stat().st_size
    (middle / shard).write_bytes(b"cut")
    assert megatron.damage(middle) == f"{middle / shard} has 3 bytes, not the {size:,} that were written"
    (oldest / "manifest.json").write_text("{")
    assert megatron.damage(oldest) == f"{oldest / 'manifest.json'} is damaged"
    (oldest / "manifest.json").unlink()
    assert megatron.damage(oldest) is None, "of others nothing is known"


def test_a_changed_file_is_told_by_its_checksum(tmp_path: Path) -> None:
    folder = write(tmp_path)
    names = PATHS
    assert megatron.changed(folder, [*names, "mp_rank_07/of_another_layout.pt"]) is None
    path = folder / names[1]
    path.write_bytes(path.read_bytes().replace(b"\x40", b"\x41", 1))
    assert megatron.damage(folder) is None and megatron.changed(folder, names[:1]) is None
    assert megatron.changed(folder, names) == f"{path} is not what was written (its checksum differs)"


def test_checkpoints_of_before_are_compared_by_their_sha256(tmp_path: Path) -> None:
    folder, name = write(tmp_path), "mp_rank_00/model_optim_rng.pt"
    manifest, path = json.loads((folder / "manifest.json").read_text(encoding="utf-8")), folder / name
    assert set(manifest["files"][name]) == {"bytes", "xxh3_128"}
    manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert megatron.changed(folder, [name]) is None
    path.write_bytes(path.read_bytes().replace(b"\x80\x3f", b"\x80\x3e", 1))
    assert megatron.changed(folder, [name]) == f"{path} is not what was written (its checksum differs)"


def test_only_the_newest_whole_ones_are_kept(tmp_path: Path) -> None:
    newest, middle, oldest = three(tmp_path)
    assert megatron.keep_newest(tmp_path, 3) == []
    assert megatron.keep_newest(tmp_path, 1, protected=[middle]) == [oldest]
    assert megatron.checkpoints(tmp_path) == [newest, middle]
    (tmp_path / ".iter_0000004.deleting").mkdir()  # of a process that was killed
    assert megatron.keep_newest(tmp_path, 1) == [middle]
    assert {path.name for path in tmp_path.iterdir()} == {newest.name, megatron.TRACKER}


def test_a_damaged_one_takes_no_place_of_those_that_are_kept(tmp_path: Path) -> None:
    newest, middle, oldest = three(tmp_path)
    (middle / "mp_rank_00/model_optim_rng.pt").unlink()
    assert megatron.keep_newest(tmp_path, 2) == []
    before = write(tmp_path, 8)
    (tmp_path / megatron.TRACKER).write_text("11\n")
    assert megatron.keep_newest(tmp_path, 2) == [before]
    assert newest.exists() and oldest.exists()


def test_the_best_is_kept_until_another_is(tmp_path: Path) -> None:
    newest, middle, oldest = three(tmp_path)
    megatron.mark_best(tmp_path, 9)
    assert (tmp_path / "best.txt").read_text() == "9\n"
    assert megatron.keep_newest(tmp_path, 1) == [middle] and oldest.exists()
    megatron.mark_best(tmp_path, 11)
    assert megatron.keep_newest(tmp_path, 1) == [oldest] and newest.exists()
