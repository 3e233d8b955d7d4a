"""One training step of a Qwen3 on one device through our code, and through transformers on the same samples.

``python benchmarks/train_step.py`` measures the model of the quickstart on the CPU where there is no accelerator, rows of
512 tokens; with one, a stack of layers of Qwen3-8B in bf16, packed rows of 8,192 tokens (``--seq-length 32768`` for more).
Contenders take steps in turns in one process, so that whatever else the machine does meets all of them. A report with
date, device and versions is written to ``--output``.

Ours: the plan, model, optimizer and step of ``posttrain_gpt.py``. transformers: Qwen3ForCausalLM with flash-attn where it
is installed, else scaled dot products, a loss over all positions, and torch's fused AdamW.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from step_contenders import Ours, Transformers, leave_world, planned
from step_parts import Parts

from mindspeed_ift.cli.main import main as command
from mindspeed_ift.data.staging import write_text
from mindspeed_ift.devices.device import current
from mindspeed_ift.planning.operations import step_operations

ROOT = Path(__file__).resolve().parents[1]
PACKED = ["--reset-attention-mask", "--reset-position-ids", "--neat-pack"]
QUICKSTART = "--num-layers 2 --hidden-size 64 --ffn-hidden-size 256 --num-attention-heads 4 --num-query-groups 2"
LARGE = (
    "--hidden-size 4096 --ffn-hidden-size 12288 --num-attention-heads 32 --num-query-groups 8 --kv-channels 128 "
    "--vocab-size 151936 --max-position-embeddings 40960 --untie-embeddings-and-output-weights"
).split()
"""Qwen3-8B but for the number of its layers: a preset is taken as it is."""
RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"


@dataclass
class Measured:
    """What some steps of one contender took.

    Attributes:
        name: of the contender.
        wall: seconds of each step.
        cpu: seconds of all of the process's threads, of each step.
        tokens: of all steps, pads too.
        real_tokens: without pads.
        learnt_tokens: that enter the loss.
        squared_lengths: of the samples.
        operations: that the steps cannot do without, see `planning.operations`.
        loss: of the last step.
        parts: mean milliseconds of a step's parts, in steps of their own, with waits for the device between them.
        failure: why it took no step, or empty.
    """

    name: str
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    tokens: int = 0
    real_tokens: int = 0
    learnt_tokens: int = 0
    squared_lengths: int = 0
    operations: float = 0.0
    loss: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    failure: str = ""

    def per_real_token(self, seconds: list[float]) -> float:
        """Microseconds."""
        return 1e6 * sum(seconds) / self.real_tokens


def measure(contender: Ours | Transformers, found: Measured, steps: int) -> None:
    """Take some steps."""
    for _ in range(steps):
        wall, cpu = time.perf_counter(), time.process_time()
        batches = contender.take()
        found.loss = contender.step(batches)
        current().synchronize()
        found.wall.append(time.perf_counter() - wall)
        found.cpu.append(time.process_time() - cpu)
        for name in ("real_tokens", "learnt_tokens", "squared_lengths"):
            setattr(found, name, getattr(found, name) + sum(getattr(batch, name) for batch in batches))
        found.tokens += sum(batch.tokens.numel() for batch in batches)
    found.operations = step_operations(
        contender.plan.architecture,
        real_tokens=found.real_tokens,
        learnt_tokens=found.learnt_tokens,
        squared_lengths=found.squared_lengths,
        adapters=False,
    )


def parts_of(contender: Ours | Transformers, steps: int) -> dict[str, float]:
    """Mean milliseconds of the parts of a step."""
    parts = Parts(current())
    with parts:
        contender.watch(parts)
        for _ in range(steps):
            with parts.span("whole step"):
                with parts.span("data"):
                    batches = contender.take()
                contender.step(batches)
    return parts.milliseconds(steps)


def race(makers: dict[str, Callable[[], Ours | Transformers]], rounds: int, steps: int) -> list[Measured]:
    """Let all take steps in turns; who runs out of memory is out, and its report says so."""
    found = {name: Measured(name) for name in makers}
    there: dict[str, Ours | Transformers] = {}

    def attempt(name: str, work: Callable[[], Any]) -> None:
        try:
            work()
        except torch.OutOfMemoryError as error:
            there.pop(name, None)
            found[name] = Measured(name, failure=f"out of memory: {str(error).splitlines()[0]}")

    def start(name: str) -> None:
        there[name] = makers[name]()
        measure(there[name], Measured(name), 2)  # warm: compilers, allocators, moments

    for name in makers:
        attempt(name, lambda name=name: start(name))
    for _ in range(rounds):
        for name in list(there):
            attempt(name, lambda name=name: measure(there[name], found[name], steps))
    for name in list(there):
        attempt(name, lambda name=name: found[name].parts.update(parts_of(there[name], 2)))
    return list(found.values())


def prepare(folder: Path, tokenizer: str | None, records: Path, length: int) -> tuple[list[str], list[str]]:
    """Flags of the samples one by one, and packed."""
    if tokenizer is None:
        command(["make-tokenizer", "--output", str(folder / "tokenizer")])
        tokenizer = str(folder / "tokenizer")
    flags = []
    for name, packing in (("single", []), ("packed", ["--pack", "--neat-pack", "--seq-length", str(length)])):
        words = ["--input", str(records), "--output-prefix", str(folder / name), "--prompt-type", "qwen3", *packing]
        command(["preprocess", *words, "--tokenizer-name-or-path", tokenizer, "--workers", "1"])
        flags.append(["--data-path", str(folder / name), "--seq-length", str(length)])
    return flags[0], [*flags[1], *PACKED]


def long_records(path: Path, tokens: int) -> Path:
    """Conversations of words, of log-normal lengths around an eighth of a row, as instruction data has them."""
    chance = random.Random(1)
    words = "add subtract please carefully quickly explain the answer of this question".split()
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(400):
            count = min(int(chance.lognormvariate(0, 1) * tokens / 8) + 8, int(tokens * 0.9))
            texts = [" ".join(chance.choice(words) for _ in range(count // 2)) for _ in "ab"]
            file.write(json.dumps({"instruction": texts[0], "output": texts[1]}) + "\n")
    return path


def small(chosen: argparse.Namespace, folder: Path) -> list[Measured]:
    """The quickstart's model: ours one by one, padded to rows and packed, transformers one by one; eight rows a step."""
    single, packed = prepare(folder, chosen.tokenizer, chosen.records, chosen.seq_length or 512)
    model = [*QUICKSTART.split(), "--kv-channels", "16", "--micro-batch-size", "8", "--global-batch-size", "8"]
    shortened = [*model, *single, "--no-pad-to-seq-lengths"]
    few = [*model[:-4], "--micro-batch-size", "1", "--global-batch-size", "1"]
    return race(
        {
            "ours, one by one": lambda: Ours(shortened),
            "transformers, one by one": lambda: Transformers(planned(shortened), False),
            "ours, padded": lambda: Ours([*model, *single, "--pad-to-seq-lengths"]),
            "ours, packed": lambda: Ours([*model, *packed]),
            "ours, packed, one row a step": lambda: Ours([*few, *packed]),
        },
        chosen.rounds,
        chosen.steps,
    )


def large(chosen: argparse.Namespace, folder: Path) -> list[Measured]:
    """A stack of Qwen3-8B's layers in bf16, packed."""
    length = chosen.seq_length or 8192
    _, packed = prepare(folder, chosen.tokenizer, long_records(folder / "records.jsonl", length), length)
    model = [*LARGE, "--num-layers", str(chosen.layers), "--bf16", "--micro-batch-size", "1"]
    model += ["--global-batch-size", str(chosen.rows), *packed, *(RECOMPUTE.split() if chosen.recompute else [])]
    makers: dict[str, Callable[[], Ours | Transformers]] = {
        "ours, packed": lambda: Ours(model),
        "transformers, packed": lambda: Transformers(planned(model), chosen.recompute),
    }
    return race(makers, chosen.rounds, chosen.steps)


RATIOS = {
    "one by one: transformers / ours": ("transformers, one by one", "ours, one by one"),
    "ours: padded / packed": ("ours, padded", "ours, packed"),
    "packed: transformers / ours": ("transformers, packed", "ours, packed"),
}


def report(found: list[Measured]) -> dict[str, Any]:
    """What is written: figures of each contender, and how many times as long a real token takes one as another."""
    device, by_name = current(), {one.name: one for one in found if one.wall}
    peak = device.peak_operations()
    contenders = []
    for one in found:
        seconds = sum(one.wall)
        speeds = {
            "real_tokens_per_second": one.real_tokens / seconds,
            "operations_per_second": one.operations / seconds,
            "mfu": one.operations / seconds / peak if peak else None,
            "wall_us_per_real_token": one.per_real_token(one.wall),
            "cpu_us_per_real_token": one.per_real_token(one.cpu),
        }
        contenders.append(asdict(one) | (speeds if one.wall else {}))
    ratios = {
        name: {
            "wall": by_name[above].per_real_token(by_name[above].wall)
            / by_name[below].per_real_token(by_name[below].wall),
            "cpu": by_name[above].per_real_token(by_name[above].cpu)
            / by_name[below].per_real_token(by_name[below].cpu),
        }
        for name, (above, below) in RATIOS.items()
        if above in by_name and below in by_name
    }
    return {"contenders": contenders, "ratios": ratios}


def where() -> dict[str, Any]:
    """Date, device and versions."""
    import transformers

    device = current()
    named = torch.get_device_module(device.kind).get_device_name() if device.asynchronous else platform.processor()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", "benchmarks/train_step.py", *sys.argv[1:]]),
        "device": device.kind,
        "device_name": named or platform.machine(),
        "kernels": device.kernel_notice,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {"transformers": transformers.__version__},
    }


def show(written: dict[str, Any]) -> None:
    """Print what people want to see of it."""
    size = "a small size, for want of an accelerator" if written["device"] == "cpu" else "layers of Qwen3-8B"
    print(f"{written['date']}  {written['device']} ({written['device_name']}): {size}; kernels: {written['kernels']}")
    for one in written["contenders"]:
        if one["failure"]:
            print(f"{one['name']:<30}{one['failure']}")
            continue
        share = f"  MFU {100 * one['mfu']:.1f} %" if one["mfu"] is not None else ""
        print(
            f"{one['name']:<30}{1e3 * statistics.median(one['wall']):>9.1f} ms a step{one['real_tokens_per_second']:>10,.0f} "
            f"real tokens/s{one['cpu_us_per_real_token']:>10.1f} CPU us a real token  loss {one['loss']:.3f}{share}"
        )
        print("".join(f"    {name} {value:.1f}" for name, value in one["parts"].items()), "ms")
    for name, ratio in written["ratios"].items():
        print(f"{name:<40}{ratio['wall']:>7.2f} by the clock, {ratio['cpu']:.2f} by CPU seconds")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--tokenizer", help="folder of a tokenizer; default: Qwen3's, made for the occasion")
    parser.add_argument("--records", type=Path, default=ROOT / "examples/data/demo.jsonl", help="of the small size")
    parser.add_argument("--seq-length", type=int, help="of a row; default 8192, small 512")
    parser.add_argument("--layers", type=int, default=4, help="of Qwen3-8B")
    parser.add_argument("--rows", type=int, default=4, help="of a step, large")
    parser.add_argument("--recompute", action="store_true", help="keep no activations of layers, large")
    parser.add_argument("--output", type=Path, default=Path("train_step.json"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = (large if current().asynchronous else small)(chosen, Path(folder))
    written = where() | report(found)
    show(written)
    write_text(chosen.output, json.dumps(written, indent=1) + "\n")
    leave_world()


if __name__ == "__main__":
    main()
