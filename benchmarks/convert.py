"""Peak memory and speed of conversion, on a synthetic model of about 2 GiB in bf16, against copying its folder.

``python benchmarks/convert.py`` takes some minutes and 10 GB of disk under ``--folder``. Each case runs in a process of its
own, whose peak resident size is that of the case; mapped pages of files count too. A case is a few rounds, in each of them
a copy of the source and then the conversion: both find the source in memory, both end when all they wrote is down on the
disk (fsync). Seconds are those of the copy and of the conversion, without the start of Python, which is said for itself.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from mindspeed_ift.checkpoint.huggingface import Lazy, write_folder
from mindspeed_ift.checkpoint.names import hugging_face_shapes
from mindspeed_ift.config.architecture import Architecture

MODEL = Architecture(
    num_layers=24,
    hidden_size=2048,
    ffn_hidden_size=5632,
    num_attention_heads=16,
    num_query_groups=8,
    kv_channels=128,
    vocab_size=32_000,
)
LAYOUT = ["--target-tensor-parallel-size", "2", "--target-pipeline-parallel-size", "2"]
CASES: list[tuple[str, str, str, list[str]]] = [
    ("hf", "mg torch", "one", ["--ckpt-format", "torch"]),
    ("hf", "mg torch", "TP 2 PP 2", ["--ckpt-format", "torch", *LAYOUT]),
    ("hf", "mg torch_dist", "any", ["--ckpt-format", "torch_dist"]),
    ("mg torch one", "hf", "", []),
    ("mg torch TP 2 PP 2", "hf", "", []),
    ("mg torch_dist any", "hf", "", []),
    ("mg torch one", "mg torch_dist", "again", ["--ckpt-format", "torch_dist"]),
    ("mg torch_dist any", "mg torch", "again", ["--ckpt-format", "torch", *LAYOUT]),
]


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write; default: the system's temporary folder"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--case", type=int, nargs="+", default=None, help="numbers of the cases; default: all")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as place:
        work = Path(place)
        size = make_model(work / "hf")
        print(f"{size / 2**20:,.0f} MiB, {MODEL.num_layers} layers, hidden {MODEL.hidden_size:,}, bf16")
        began, start = time.perf_counter(), run([])
        took = time.perf_counter() - began
        print(f"resident before anything is read: {start.peak:,.0f} MiB; start and imports: {took:.1f} s")
        print(
            f"{'from':<20}{'to':<16}{'layout':<12}{'workers':>8}{'peak, MiB':>10}{'s':>7}{'CPU s':>7}{'copy, s':>9}"
            f"{'CPU s':>7}{'ratio':>8}"
        )
        for number, case in enumerate(CASES):
            if chosen.case is None or number in chosen.case:
                measure(work, case, chosen.workers, chosen.rounds)


def make_model(folder: Path) -> int:
    """A Hugging Face folder of random weights; returns its size."""
    chance = torch.Generator().manual_seed(1)
    tensors = [
        Lazy(name, torch.bfloat16, shape, lambda shape=shape: [torch.randn(shape, generator=chance).bfloat16()])
        for name, shape in hugging_face_shapes(MODEL).items()
    ]
    write_folder(folder, tensors, MODEL.to_hugging_face(), None)
    return sum(path.stat().st_size for path in folder.iterdir())


class Run(NamedTuple):
    """What a process said of itself."""

    seconds: float
    processor: float
    peak: float


def measure(work: Path, case: tuple[str, str, str, list[str]], workers: list[int], rounds: int) -> None:
    """Copy, convert, print: the middle of the rounds, and of their ratios."""
    source, target, layout, flags = case
    found, made = work / source.replace(" ", "_"), work / f"{target} {layout}".strip().replace(" ", "_")
    if target == "hf":
        made = work / "back"
    kinds = ["--load-model-type", source[:2], "--save-model-type", target[:2]]
    folders = ["--load-dir", str(found), "--save-dir", str(made)]
    for count in workers:
        copies, runs = [], []
        for _ in range(rounds):
            shutil.rmtree(made, ignore_errors=True)
            copies.append(timed_copy(found, work / "copy"))
            runs.append(run(["convert", *kinds, *folders, *flags, "--workers", str(count)]))
        ratios = [copy.seconds / one.seconds for copy, one in zip(copies, runs, strict=True)]
        middle = [median(one) for one in zip(*runs, strict=True)]
        copied = [median(one) for one in zip(*copies, strict=True)]
        print(
            f"{source:<20}{target:<16}{layout:<12}{count:>8}{max(one.peak for one in runs):>10,.0f}{middle[0]:>7.1f}"
            f"{middle[1]:>7.1f}{copied[0]:>9.1f}{copied[1]:>7.1f}{median(ratios):>8.2f}"
            f"   ({', '.join(f'{one:.2f}' for one in ratios)})",
            flush=True,
        )
    if target == "hf" or layout == "again":
        shutil.rmtree(made)


def timed_copy(source: Path, target: Path) -> Run:
    """Copy a folder down to the disk."""
    start, processor = time.perf_counter(), time.process_time()
    shutil.copytree(source, target)
    for path in target.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    took = Run(time.perf_counter() - start, time.process_time() - processor, 0)
    shutil.rmtree(target)
    return took


def run(words: list[str]) -> Run:
    """A process of its own: a command of the package, or nothing but its imports; the peak is of resident MiB."""
    command = (
        "import sys, time\n"
        "from mindspeed_ift.checkpoint.convert import convert\n"
        "from mindspeed_ift.cli.main import main\n"
        "start, processor = time.perf_counter(), time.process_time()\n"
        "status = main(sys.argv[1:]) if len(sys.argv) > 1 else 0\n"
        "took = time.perf_counter() - start, time.process_time() - processor\n"
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(*took, int(peak) / 1024)\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", command, *words], stdout=subprocess.PIPE, text=True, check=True)
    return Run(*map(float, done.stdout.splitlines()[-1].split()))


if __name__ == "__main__":
    main()
