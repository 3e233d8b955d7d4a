"""The environment of a process that finds the fake device."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[3]


class Unavailable(Exception):
    """Why the device cannot be made here."""


def environment(folder: Path) -> dict[str, str]:
    """Compiles `runtime.cpp` into a folder, for processes with `plugin`.

    Raises:
        Unavailable: there is no compiler, or torch has CUDA itself.
    """
    if torch.version.cuda is not None:
        raise Unavailable("this torch has CUDA; the fake device needs one without")
    if not shutil.which("g++"):
        raise Unavailable("g++ is needed to let torch take a device for there")
    home, library = Path(torch.__file__).parent, folder / "fake_cuda.so"
    command = ["g++", "-O0", "-std=c++20", "-shared", "-fPIC", "-w", f"-I{home}/include", str(ROOT / _SOURCE)]
    command += ["-o", str(library), f"-L{home}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{home}/lib"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    own = {"FAKE_CUDA_RUNTIME": str(library), "PYTHONPATH": paths, "MINDSPEED_IFT_DEVICE": "cuda"}
    return os.environ | own


_SOURCE = "tests/device/fake_cuda/runtime.cpp"
