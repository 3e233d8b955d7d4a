"""Peak memory and speed of conversion, on a synthetic model of about 2 GiB in bf16, against copying its folder.

``python benchmarks/convert.py`` takes some minutes and 10 GB of disk under ``--folder``. Each case runs in a process of its
own, whose peak resident size is that of the case; mapped pages of files count too. A copy reads, writes and brings down to
the disk, as a conversion does, in the same run and right before the case that is compared with it.
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
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as place:
        work = Path(place)
        size = make_model(work / "hf")
        print(f"{size / 2**20:,.0f} MiB, {MODEL.num_layers} layers, hidden {MODEL.hidden_size:,}, bf16")
        print(f"resident before anything is read: {resident([]):,.0f} MiB")
        print(f"{'from':<20}{'to':<16}{'layout':<12}{'peak, MiB':>10}{'MB/s':>8}{'copy, MB/s':>12}{'ratio':>8}")
        for source, target, layout, flags in CASES:
            measure(work, (source, target, layout), flags, size)


def make_model(folder: Path) -> int:
    """A Hugging Face folder of random weights; returns its size."""
    chance = torch.Generator().manual_seed(1)
    tensors = [
        Lazy(name, torch.bfloat16, shape, lambda shape=shape: torch.randn(shape, generator=chance).bfloat16())
        for name, shape in hugging_face_shapes(MODEL).items()
    ]
    write_folder(folder, tensors, MODEL.to_hugging_face(), None)
    return sum(path.stat().st_size for path in folder.iterdir())


def measure(work: Path, case: tuple[str, str, str], flags: list[str], size: int) -> None:
    """Copy, convert, print."""
    source, target, layout = case
    found, made = work / source.replace(" ", "_"), work / f"{target} {layout}".strip().replace(" ", "_")
    if target == "hf":
        made = work / "back"
    copied = timed_copy(found, work / "copy")
    kinds = ["--load-model-type", source[:2], "--save-model-type", target[:2]]
    start = time.perf_counter()
    folders = ["--load-dir", str(found), "--save-dir", str(made)]
    peak = resident(["convert", *kinds, *folders, *flags])
    took = time.perf_counter() - start
    if target == "hf" or layout == "again":
        shutil.rmtree(made)
    speed, of_copy = (size / 1e6 / one for one in (took, copied))
    print(
        f"{source:<20}{target:<16}{layout:<12}{peak:>10,.0f}{speed:>8,.0f}{of_copy:>12,.0f}{copied / took:>8.2f}",
        flush=True,
    )


def timed_copy(source: Path, target: Path) -> float:
    """Seconds to copy a folder down to the disk."""
    start = time.perf_counter()
    shutil.copytree(source, target)
    for path in target.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    took = time.perf_counter() - start
    shutil.rmtree(target)
    return took


def resident(words: list[str]) -> float:
    """Peak resident MiB of a process of its own: of a command of the package, or of nothing but its imports."""
    command = (
        "import sys\n"
        "from mindspeed_ift.checkpoint.convert import convert\n"
        "from mindspeed_ift.cli.main import main\n"
        "status = main(sys.argv[1:]) if len(sys.argv) > 1 else 0\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", command, *words], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1024


if __name__ == "__main__":
    main()
