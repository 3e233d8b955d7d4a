"""Sets of versions in, a table of what passed on each out; ``ci/compatibility.sh`` starts it.

Only the standard library: each set has an environment of its own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build/compatibility"


@dataclass(frozen=True)
class Versions:
    """A set of versions to try.

    Attributes:
        python: minor version.
        pins: distribution -> what pip is held to; where it says nothing, ``constraints.txt`` does.
        newest: hold nothing but ``pins``: what else setup.py allows is the newest.
        without: checks that are not tried.
        megatron: version of megatron-core to put in the place of that which is pinned, without what it depends on: that
            holds numpy back to 1, or is much that is never imported.
    """

    python: str
    pins: dict[str, str]
    newest: bool = False
    without: tuple[str, ...] = ()
    megatron: str = ""


BASE = {"torch": "==2.13.0", "megatron-core": "==0.16.1", "transformers": "==5.2.0"}
OLD_TRANSFORMERS = {"transformers": "==4.51.3", "tokenizers": "<0.22", "datasets": "<5"}
NEWEST = {"torch": "==2.14.1", "megatron-core": "==0.19.2", "transformers": "==5.24.0"}

SETS = {
    "base": Versions("3.11", BASE),
    "transformers-4.51": Versions("3.11", BASE | OLD_TRANSFORMERS),
    "torch-2.6": Versions("3.11", BASE | OLD_TRANSFORMERS | {"torch": "==2.6.0"}),
    "torch-2.7": Versions("3.10", BASE | {"torch": "==2.7.1"}),
    "torch-2.9": Versions("3.11", BASE | {"torch": "==2.9.1"}),
    "megatron-0.12": Versions("3.11", BASE, megatron="0.12.1"),
    "megatron-0.15": Versions("3.11", BASE, megatron="0.15.3"),
    "torch-2.14": Versions("3.11", BASE | {"torch": "==2.14.0"}),
    "megatron-0.17": Versions("3.12", NEWEST | {"megatron-core": "==0.17.1"}, newest=True),
    "megatron-0.18": Versions("3.12", NEWEST | {"megatron-core": "==0.18.2"}, newest=True),
    "newest": Versions("3.12", NEWEST, newest=True, without=("npu",)),  # there is no torch_npu for that torch yet
}
"""Name -> versions. What passes is supported, and stands in docs/versions.md and in the doctor's table."""

UNIT = ("model", "checkpoint", "devices", "training", "inference", "parallel")
CHECKS = {
    "unit": [*(f"tests/unit/{name}" for name in UNIT), "tests/unit/data/test_tokenizer.py"],
    "templates": ["tests/unit/data/test_hf_template.py", "tests/unit/data/test_chat_template.py"],
    "parity": ["tests/parity/test_hugging_face.py", "tests/parity/test_experts.py"],
    "adapters": ["tests/parity/test_lora.py"],
    "training": ["tests/end_to_end/test_training.py"],
    "two ranks": ["tests/end_to_end/test_smoke.py"],
    "npu": [f"tests/device/test_{name}.py" for name in ("npu_kernels", "npu_training", "emulated_npu")],
    "layouts": ["tests/distributed/test_pipelines.py", "tests/distributed/test_expert_layouts.py"],
}
"""What is tried on each set -> arguments of pytest."""

LIMIT = 1800
"""Seconds that one check may take."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    set: str
    check: str
    result: str
    told: str
    seconds: int


def find_python(version: str) -> str | None:
    """The interpreter of a minor version: of the variable PYTHON_3_11, say, or python3.11 on the PATH."""
    return shutil.which(os.environ.get(_variable(version)) or f"python{version}")


def _variable(version: str) -> str:
    return "PYTHON_" + version.replace(".", "_")


def constraints(versions: Versions) -> str:
    """What pip is held to: lines of a constraints file."""
    held = {} if versions.newest else dict(_pinned((ROOT / "constraints.txt").read_text(encoding="utf-8")))
    return "".join(f"{name}{version}\n" for name, version in (held | versions.pins).items())


def _pinned(text: str) -> list[tuple[str, str]]:
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return [(line.partition("==")[0], "==" + line.partition("==")[2]) for line in lines if line]


def install(name: str, versions: Versions) -> tuple[Path | None, str]:
    """(interpreter of an environment with the project and these versions, or None; what is to be said)."""
    base = find_python(versions.python)
    if base is None:
        return None, f"no python{versions.python} that runs: put it on the PATH, or set {_variable(versions.python)}"
    folder = BUILD / name
    python = folder / "bin/python"
    held = folder / "constraints.txt"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([base, "-m", "venv", str(folder)], check=True)
    held.write_text(constraints(versions), encoding="utf-8")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    commands = [[*pip, "-c", held, "-e", f"{ROOT}[dev]"]]
    commands += [[*pip, "--no-deps", f"megatron-core=={versions.megatron}"]] if versions.megatron else []
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "ERROR" in line]
            return None, (errors or done.stderr.splitlines() or ["pip failed"])[0]
    return python, ""


def installed(python: Path) -> dict[str, str]:
    """Distribution -> version in that environment."""
    command = [python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {one["name"].lower(): one["version"] for one in json.loads(done.stdout)}


def run_check(python: Path, arguments: Sequence[str], report: Path) -> tuple[str, str]:
    """(result, what is to be said) of one selection of tests."""
    environment = dict(os.environ, PYTHON=str(python), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    environment |= {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    report.unlink(missing_ok=True)
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
    with report.with_suffix(".log").open("w", encoding="utf-8") as log:
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, timeout=LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            return "failed", f"took more than {LIMIT} s"
    if not report.is_file():
        return "failed", f"pytest ended with {done.returncode}; see {report.with_suffix('.log')}"
    return judge(report.read_text(encoding="utf-8"), done.returncode)


def judge(report: str, code: int) -> tuple[str, str]:
    """(result, what is to be said) of pytest's report in JUnit's format and its exit code."""
    cases = list(ElementTree.fromstring(report).iter("testcase"))
    bad = [case.get("name", "") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - len(bad) - skipped
    told = f"{passed} passed, {len(bad)} failed, {skipped} skipped"
    if code or bad or not passed:
        return "failed", ": ".join([told, *bad[:1]])
    return "ok", told


def try_set(name: str, versions: Versions, options: argparse.Namespace) -> tuple[list[Row], dict[str, str]]:
    """Rows of the table, and the versions that were there."""
    start = time.monotonic()
    python: Path | None = BUILD / name / "bin/python"
    told = ""
    if not (options.reuse and python is not None and python.exists()):
        python, told = install(name, versions)
    rows = [Row(name, "install", "failed" if python is None else "ok", told, round(time.monotonic() - start))]
    show(rows[0])
    if python is None:
        return rows, {}
    for check in [one for one in options.checks if one not in versions.without]:
        start = time.monotonic()
        result, told = run_check(python, CHECKS[check], BUILD / f"{name} {check}.xml".replace(" ", "_"))
        rows.append(Row(name, check, result, told, round(time.monotonic() - start)))
        show(rows[-1])
    found = installed(python)
    if not options.keep:
        shutil.rmtree(BUILD / name)
    return rows, found


def show(row: Row) -> None:
    """Print a line of the table."""
    print(f"{row.result:<8}{row.set:<19}{row.check:<12}{row.seconds:>5} s  {row.told}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the sets; 0 when all is ok."""
    parser = argparse.ArgumentParser(prog="ci/compatibility.sh", description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="which; all if not given")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS), help="which; all if not given")
    parser.add_argument("--reuse", action="store_true", help="take an environment that is there already")
    parser.add_argument("--keep", action="store_true", help="leave the environments")
    parser.add_argument("--output", type=Path, default=BUILD / "results.json", help="JSON file of the results")
    options = parser.parse_args(arguments)
    BUILD.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "sets": {},
    }
    failed = False
    for name in options.sets:
        rows, found = try_set(name, SETS[name], options)
        failed |= any(row.result != "ok" for row in rows)
        packages = {package: found.get(package) for package in SETS[name].pins}
        content["sets"][name] = {
            "python": SETS[name].python,
            "packages": packages,
            "rows": [asdict(row) for row in rows],
        }
        options.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"{'failed' if failed else 'ok'}: {options.output}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
