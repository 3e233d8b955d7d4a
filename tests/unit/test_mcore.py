"""The door to Megatron-core: which versions may pass, and specs of either form."""

from __future__ import annotations

import functools
import importlib.metadata
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mindspeed_ift import mcore
from mindspeed_ift.devices.megatron_names import installed_version


@pytest.mark.parametrize("version", ["0.11.0", "0.20.0"])
def test_a_version_that_was_not_run_is_refused_before_its_import(version: str, tmp_path: Path) -> None:
    """Of a clone that lies on the path before what pip installed: the one that would be imported."""
    major, minor, patch = version.split(".")
    file = tmp_path / "megatron/core/package_info.py"
    file.parent.mkdir(parents=True)
    file.write_text(f"MAJOR = {major}\nMINOR = {minor}\nPATCH = {patch}\nPRE_RELEASE = ''\n", encoding="utf-8")
    told, imported = _import_mcore(tmp_path)
    assert told.startswith(f"RunError megatron-core {version} is installed")
    assert "pip install megatron-core==0.16.1" in told and imported == "[]"


def test_without_any_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert installed_version() is None


def test_the_version_is_that_of_pip() -> None:
    assert installed_version() == importlib.metadata.version("megatron-core")


def _import_mcore(folder: Path) -> list[str]:
    """What is told when it is imported with a folder first on the path, and which modules of Megatron there are then."""
    program = (
        "import sys\n"
        f"sys.path.insert(0, {str(folder)!r})\n"
        "try:\n    import mindspeed_ift.mcore\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
        "print([name for name in sys.modules if name.startswith('megatron.')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_parts_of_a_spec_of_either_form() -> None:
    parts = object()
    assert mcore.submodules(SimpleNamespace(submodules=parts)) is parts
    assert mcore.submodules(functools.partial(print, submodules=parts)) is parts
