"""Files that grow aside: marks, going on from them, names at the end."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mindspeed_ift.config.errors import RunError, UserError
from mindspeed_ift.data.staging import ChangedFile, GrowingFile, Staging, mark_of, publish, unfinished


def test_a_file_goes_on_from_its_mark(tmp_path: Path) -> None:
    path = tmp_path / "file"
    file = GrowingFile(path)
    file.write(b"abc")
    mark = file.mark()
    file.write(b"lost")
    file.close()
    again = GrowingFile(path, mark)
    again.write(b"def")
    assert again.mark() == {"bytes": 6, "sha256": hashlib.sha256(b"abcdef").hexdigest()} == mark_of(path)
    again.close()
    assert path.read_bytes() == b"abcdef"


@pytest.mark.parametrize("content", [None, b"ab", b"abx"])
def test_a_file_that_changed_is_not_gone_on_with(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file"
    file = GrowingFile(path)
    file.write(b"abc")
    mark = file.mark()
    file.close()
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ChangedFile):
        GrowingFile(path, mark)
    with pytest.raises(ChangedFile):
        GrowingFile(path, {})


def test_progress_is_for_the_same_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(RunError), Staging(tmp_path / "data") as staging:
        assert not staging.holds_progress
        staging.save({"flags": (1, 2)}, {"read": 3})
        assert staging.load({"flags": (1, 2)}) == {"read": 3}
        assert staging.load({"flags": (1, 3)}) is None
        raise RunError("power is out")
    staging = Staging(tmp_path / "data")
    assert staging.holds_progress
    (staging.folder / "progress.json").write_text("{")
    assert staging.load({"flags": (1, 2)}) is None
    staging.clear()
    assert [path.name for path in staging.folder.iterdir()] == ["UNFINISHED.txt"]
    assert unfinished(tmp_path / "data") == staging.folder
    staging.remove()
    staging.close()
    assert unfinished(tmp_path / "data") is None


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data.partial"
    folder.mkdir()
    (folder / "mine.txt").write_text("")
    with pytest.raises(UserError, match="data.partial holds files that are not of a run; move it"):
        Staging(tmp_path / "data")
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("error", "saved"), [(None, True), (UserError("bad record"), True), (RunError("full"), False)])
def test_nothing_stays_that_cannot_be_gone_on_with(tmp_path: Path, error: Exception | None, saved: bool) -> None:
    try:
        with Staging(tmp_path / "sub" / "data") as staging:
            if saved:
                staging.save({}, {})
            if error is not None:
                raise error
    except (UserError, RunError):
        pass
    assert not list((tmp_path / "sub").iterdir())


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with Staging(tmp_path / "data") as staging:
        (staging.folder / "file").write_text("")
        with pytest.raises(UserError, match="another run is writing .*data"):
            Staging(tmp_path / "data")
        assert list(staging.folder.iterdir())
    with Staging(tmp_path / "data"):
        pass


def test_no_moment_of_publishing_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While new files come, no index of the old dataset is there, and none of the new before all its values."""
    source, target = tmp_path / "source", tmp_path / "target"
    names = ["a.bin", "a.idx", "b.bin", "b.idx", "manifest.json"]
    for folder in (source, target):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(folder.name)
    seen = []
    replace = os.replace

    def watched(old: Path, new: Path) -> None:
        seen.append({path.name: path.read_text() for path in target.iterdir()})
        replace(old, new)

    monkeypatch.setattr(os, "replace", watched)
    publish(source, target, names)
    assert len(seen) == 5
    for files in seen:
        assert "manifest.json" not in files
        assert not any(files[name] == "target" for name in files if name.endswith(".idx"))
        if any(name.endswith(".idx") for name in files):
            assert files["a.bin"] == files["b.bin"] == "source"
    assert {path.name: path.read_text() for path in target.iterdir()} == dict.fromkeys(names, "source")


def test_a_folder_that_cannot_be_made_is_a_place_to_change() -> None:
    with pytest.raises(UserError, match="cannot write /proc/data.partial .No such file.*another --output-prefix"):
        Staging("/proc/data")
    with pytest.raises(UserError, match="choose another --cache-dir"):
        Staging("/proc/data", "--cache-dir")
