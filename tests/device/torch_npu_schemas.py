"""Schemas of the operators that the NPU's kernels need, in the releases of torch_npu: read from the wheels, kept as data.

``python -m tests.device.torch_npu_schemas`` writes them anew; it needs pip and a package index, and no torch of these
versions: a wheel keeps the schemas in its library as text.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
import yaml

from mindspeed_ift.devices.kernels.npu import NEEDED

SCHEMAS = Path(__file__).with_suffix(".yaml")
VERSIONS = (
    "2.1.0.post8 2.1.0.post17 2.3.1.post2 2.3.1.post6 2.4.0 2.4.0.post4 2.5.1 2.5.1.post1 2.6.0 2.6.0.post5 "
    "2.7.1 2.7.1.post11 2.8.0 2.8.0.post5 2.9.0 2.9.1 2.10.0 2.10.0.post7 2.11.0 2.11.0.post3 2.12.0 2.12.0.post3 "
    "2.13.0 2.14.0"
).split()
"""First and last release for each torch."""

FUSED_ADAMW = "aten::_fused_adamw_"
"""No operator of torch_npu's own: whether it has a kernel for torch's."""

_KERNEL_OF_ADAMW = b"wrapper_NPU___fused_adamw_"
_PYTHON = "310"  # every release has a wheel for it
_HEAD = """# Written by tests/device/torch_npu_schemas.py: schema of an operator -> releases of torch_npu that have it.
"""


def known() -> dict[str, dict[str, str]]:
    """Release -> operator (with its overload, if it has a name) -> schema; of `FUSED_ADAMW` no more than its name."""
    found: dict[str, dict[str, str]] = {version: {} for version in VERSIONS}
    for schema, versions in yaml.safe_load(SCHEMAS.read_text(encoding="utf-8")).items():
        for version in versions:
            found[version][schema.partition("(")[0]] = schema
    return found


def missing(version: str) -> dict[str, str]:
    """Groups of kernels that a release cannot serve -> why: an operator, that of a gradient or an argument lacks."""
    schemas = known()[version]
    found = {}
    for group, needed in NEEDED.items():
        absent = [operator for operator in needed if operator not in schemas]
        unknown = [
            f"`{operator}` knows no `{argument}`"
            for operator, arguments in needed.items()
            if operator in schemas
            for argument in arguments
            if argument not in [one.name for one in torch._C.parse_schema(schemas[operator]).arguments]
        ]
        reasons = [*unknown, *(f"no `{operator}`" for operator in absent)]
        found |= {group: reasons[0]} if reasons else {}
    return found if FUSED_ADAMW in schemas else found | {"adamw": f"no `{FUSED_ADAMW.partition('::')[2]}`"}


def operators() -> set[str]:
    """All that some kernel needs."""
    return {operator for needed in NEEDED.values() for operator in needed}


def read(library: bytes) -> list[str]:
    """The schemas of `operators` in a library of torch_npu, and `FUSED_ADAMW` if it registers that."""
    names = "|".join(sorted(operators()))
    found = re.findall(rf"(?<=\0)(?:{names})(?:\.\w+)?\([^\0]+\) -> [^\0]+(?=\0)".encode(), library)
    schemas = sorted({schema.decode() for schema in found})
    return schemas + [FUSED_ADAMW] * (_KERNEL_OF_ADAMW in library)


def download(version: str, folder: Path) -> Path:
    """The wheel of a release."""
    wanted = ["--no-deps", "--only-binary=:all:", "--python-version", _PYTHON, "--dest", str(folder)]
    for platform in ("manylinux2014_x86_64", "manylinux_2_28_x86_64"):
        wanted += ["--platform", platform]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *wanted, f"torch-npu=={version}"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return next(folder.glob(f"torch_npu-{version}-*.whl"))


def main(versions: Iterable[str] = VERSIONS) -> None:
    """Write `SCHEMAS`."""
    content: dict[str, list[str]] = {}
    for version in versions:
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(download(version, Path(folder))) as wheel:
            for schema in read(wheel.read("torch_npu/lib/libtorch_npu.so")):
                content.setdefault(schema, []).append(version)
    lines = [f"{schema!r}:\n  [{', '.join(content[schema])}]\n" for schema in sorted(content)]
    SCHEMAS.write_text(_HEAD + "".join(lines).replace("\\'", "'"), encoding="utf-8")


if __name__ == "__main__":
    main()
