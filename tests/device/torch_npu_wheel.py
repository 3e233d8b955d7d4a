"""The real torch_npu where there is no Ascend: its wheel in a folder of its own, and stand-ins for the CANN libraries.

torch imports whatever torch_npu it finds, which fails without CANN, so the wheel never enters the environment: only the
processes that `environment` describes see it. ``python -m tests.device.torch_npu_wheel`` installs it and says where. It is
the release with the number of the installed torch, or the one that the variable TORCH_NPU_VERSION names (2.7.1.post11).
"""

from __future__ import annotations

import fcntl
import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSION = os.environ.get("TORCH_NPU_VERSION") or importlib.metadata.version("torch").split("+")[0]
_PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"
FOLDER = ROOT / "build" / f"torch_npu-{VERSION}-{_PYTHON}"

_CANN = "ascendcl hccl acl_op_compiler ge_runner graph acl_tdt_channel msprofiler ascend_hal opapi".split()
_NAMES = re.compile(r"(acl|Hccl|hccl|Hcom|Msprof|ge[A-Z]|rt[A-Z]|_ZN2ge)\w*$")  # _ZN2ge: C++, up to torch_npu 2.6
_OPERATIONS = re.compile(r"aclop\w*Execute|Hccl(CommInit|All|Broadcast|Reduce|Scatter|Send|Recv|Batch)")
"""Fail, wherever they may be called: there is nothing that computes."""
_PRELOADED = "libsettings.so"
_STRING = "void _ZN2ge12AscendStringC1EPKc(void **string, const char *from) { string[0] = string[1] = 0; }"
"""The one constructor whose object is destroyed by torch_npu itself: a shared pointer to nothing."""

_SETTINGS = r"""
#include <cstring>
#include <dlfcn.h>
#include <string>
#include <unordered_set>
using Keys = std::unordered_set<std::string>;
namespace c10::CachingAllocator {
struct AcceleratorAllocatorConfig { static Keys& getMutableKeys(); };
Keys& AcceleratorAllocatorConfig::getMutableKeys() {
    Dl_info caller, mine;
    dladdr(__builtin_return_address(0), &caller);
    if (strstr(caller.dli_fname, "libc10_cuda")) return *new Keys;
    dladdr((void*)&getMutableKeys, &mine);
    return ((Keys& (*)())dlsym(dlopen("libc10.so", RTLD_LAZY | RTLD_NOLOAD), mine.dli_sname))();
}
}
"""
"""For a torch that is built for CUDA: from 2.14 on torch ends a process in which two devices name one setting of their
allocators alike, as CUDA and torch_npu do; so CUDA's go unsaid. On a server torch is built for the CPU."""

_NO_DEVICE = """
int aclrtGetDeviceCount(unsigned *count) { *count = 0; return 0; }
const char *aclrtGetSocName(void) { return "Ascend910B1"; }
const char *aclGetRecentErrMsg(void) { return ""; }
"""


class Unavailable(Exception):
    """The wheel or what it takes to use it is not here; says what."""


@functools.lru_cache(maxsize=1)
def install() -> Path:
    """The folder with the wheel's content, installed if need be.

    Raises:
        Unavailable: pip has no wheel for this torch, Python and machine, or reaches no package index.
    """
    FOLDER.parent.mkdir(exist_ok=True)
    with open(FOLDER.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes of tests may want it at once
        if not FOLDER.is_dir():
            aside = FOLDER.with_suffix(".part")
            shutil.rmtree(aside, ignore_errors=True)
            wanted = ["--no-deps", "--only-binary=:all:", "--target", str(aside), f"torch-npu=={VERSION}"]
            patience = ["--retries", "1", "--timeout", "20", "--disable-pip-version-check", "--quiet"]
            done = _run([sys.executable, "-m", "pip", "install", *patience, *wanted])
            if done.returncode:
                raise Unavailable(f"torch-npu {VERSION}: pip says: {(done.stderr.strip() or '?').splitlines()[-1]}")
            aside.rename(FOLDER)
    return FOLDER


def build_stand_ins(folder: Path, runtime: str = _NO_DEVICE) -> Path:
    """Write libraries with every function that torch_npu wants of CANN.

    Each does what ``runtime``, source in C, says; else nothing: it returns 0, or an error if it should compute.

    Raises:
        Unavailable: there is no wheel, C compiler or nm.
    """
    wheel = install()
    if not shutil.which("gcc") or not shutil.which("nm"):
        raise Unavailable("gcc and nm are needed to build stand-ins for the CANN libraries")
    own = [*(wheel / "torch_npu/lib").glob("*.so"), *(wheel / "torch_npu").glob("_C*.so")]
    wanted = {name for library in own for name in _symbols(library, "--undefined-only") if _NAMES.match(name)}
    wanted |= _looked_up(wheel / "torch_npu/lib/libtorch_npu.so")
    wanted -= {name for library in own for name in _symbols(library, "--defined-only")}
    runtime = f"{runtime}\n{_STRING}"
    wanted -= set(re.findall(r"(\w+)\(", runtime))
    bodies = [f"int {name}(void) {{ return {int(bool(_OPERATIONS.match(name)))}; }}" for name in sorted(wanted)]
    folder.mkdir(parents=True, exist_ok=True)
    for name in _CANN:  # the first has all; whoever looks into another finds it there
        rest = [] if name == _CANN[0] else ["-Wl,--no-as-needed", f"-L{folder}", f"-l{_CANN[0]}"]
        command = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,lib{name}.so", "-x", "c", "-"]
        source = "" if rest else "\n".join([runtime, *bodies])
        subprocess.run([*command, *rest, "-o", str(folder / f"lib{name}.so")], input=source, text=True, check=True)
    if _built_for_cuda():
        command = [
            "gcc",
            "-shared",
            "-fPIC",
            "-x",
            "c++",
            "-std=c++17",
            "-",
            "-o",
            str(folder / _PRELOADED),
            "-lstdc++",
        ]
        subprocess.run(command, input=_SETTINGS, text=True, check=True)
    return folder


def environment(stand_ins: Path) -> dict[str, str]:
    """Environment of a process in which ``import torch_npu`` works; the device "npu" is not available in it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ASCEND_")}
    old = os.environ.get("LD_LIBRARY_PATH")
    if (stand_ins / _PRELOADED).exists():
        inherited["LD_PRELOAD"] = str(stand_ins / _PRELOADED)
    return dict(
        inherited,
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
        LD_LIBRARY_PATH=str(stand_ins) + (f":{old}" if old else ""),
        PYTHONPATH=f"{ROOT}:{install()}",
        OMP_NUM_THREADS="1",
    )


def _built_for_cuda() -> bool:
    torch = importlib.util.find_spec("torch")
    return bool(torch and torch.origin and Path(torch.origin).with_name("lib").joinpath("libc10_cuda.so").exists())


def _looked_up(library: Path) -> set[str]:
    """Names of functions that it asks for while it runs; those of operators are in a library that there is not."""
    names = re.findall(rb"\b(?:acl(?!nn)|Hccl)\w+\b", library.read_bytes())
    return {name.decode() for name in names}


def _symbols(library: Path, which: str) -> set[str]:
    lines = _run(["nm", "-D", which, str(library)]).stdout.splitlines()
    return {line.split()[-1].split("@")[0] for line in lines}


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    try:
        print(f"torch_npu for tests: {install()}")
    except Unavailable as reason:
        print(f"tests on torch_npu will be skipped: {reason}")
