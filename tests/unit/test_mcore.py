"""The door to Megatron-core: which versions may pass, and specs of either form."""

from __future__ import annotations

import functools
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mindspeed_ift import mcore


@pytest.mark.parametrize("version", ["0.11.0", "0.20.0"])
def test_a_version_that_was_not_run_is_refused_before_its_import(version: str) -> None:
    program = (
        "import importlib.metadata, sys\n"
        f"importlib.metadata.version = lambda name: {version!r}\n"
        "try:\n    import mindspeed_ift.mcore\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
        "print([name for name in sys.modules if name.startswith('megatron.')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    told, imported = done.stdout.splitlines()
    assert told.startswith(f"RunError megatron-core {version} is installed")
    assert "pip install megatron-core==0.16.1" in told and imported == "[]"


def test_the_parts_of_a_spec_of_either_form() -> None:
    parts = object()
    assert mcore.submodules(SimpleNamespace(submodules=parts)) is parts
    assert mcore.submodules(functools.partial(print, submodules=parts)) is parts
