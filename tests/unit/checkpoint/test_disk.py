"""Room and permission, asked before something large is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_ift.checkpoint.disk import free_bytes, in_gigabytes, require_folder, require_space
from mindspeed_ift.config.errors import RunError, UserError


def test_room_is_that_of_the_nearest_folder_above(tmp_path: Path) -> None:
    free = free_bytes(tmp_path / "not" / "there")
    assert free > 0
    require_space(tmp_path / "not/there", 1, "--save")
    with pytest.raises(RunError, match=r"no space left for --save .*there: .* GB are needed, .* are free; free some"):
        require_space(tmp_path / "not/there", free * 10 + 10**9, "--save")
    with pytest.raises(RunError, match="2.0 MB are needed, 1.5 MB are free"):
        require_space(tmp_path, 2_000_000, "--save", free=1_500_000)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    require_folder(tmp_path / "new" / "run", "--save")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=f"--save {path} cannot be a folder: {tmp_path}/file is a file"):
            require_folder(path, "--save")


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # the tests may run as a user who may write everywhere
    with pytest.raises(UserError, match=f"no permission in {tmp_path}"):
        require_folder(tmp_path / "run", "--save")


def test_sizes_are_readable() -> None:
    assert [in_gigabytes(size) for size in (1_200_000, 16_400_000_000, 1_112_300_000_000)] == [
        "1.2 MB",
        "16.4 GB",
        "1,112.3 GB",
    ]
