"""How fast data preparation is, and how much memory it takes: whole processes, start-up included.

Usage: python benchmarks/preprocess.py --tokenizer FOLDER [--records-from FOLDER] [--records 20000] [--workers 2]
                                       [--backends hf fast] [--larger 10] [--runs 3] [--json results.json]

Makes an input of many Alpaca records, prepares it with tools/preprocess_data.py, encodes the same texts with the raw
`tokenizers` library (`encode_batch` with as many threads as there are workers), in turn, so that both meet the same
machine; prints medians. With --larger it prepares an input as many times as large too: time should grow as much, memory
not at all; what the additional records take is the steady rate, which is compared with the raw library's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
_DEMO = ROOT / "examples" / "data" / "demo.jsonl"
_TYPICAL_CHARACTERS = 450
_SAMPLE_SECONDS = 0.25
_TEXTS_AT_ONCE = 2000


@dataclass(frozen=True)
class Run:
    """One process and all that it started.

    Attributes:
        wall: Seconds from start to end.
        cpu: User and system seconds.
        memory: Most memory of the process tree at one time, in MiB; what processes share is counted once (PSS).
        result: What the process printed last, as JSON; empty where it prints none.
    """

    wall: float
    cpu: float
    memory: float
    result: dict[str, Any]


def main() -> int:
    """Measure, print, and write the figures."""
    options = _parse()
    if options.raw:
        print(json.dumps(_encode_raw(options.raw, options.tokenizer, options.workers)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        place = Path(folder)
        sizes = [1, options.larger] if options.larger > 1 else [1]
        inputs = {size: _write_input(place / f"{size}x.jsonl", options, options.records * size) for size in sizes}
        figures = {
            "date": datetime.now(timezone.utc).date().isoformat(),
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
            "records": options.records,
            "bytes": inputs[1].stat().st_size,
            "workers": options.workers,
            "runs": options.runs,
            **_measure(inputs, place, options),
        }
    _print(figures)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure data preparation.")
    parser.add_argument("--tokenizer", required=True, help="folder of a Hugging Face tokenizer")
    parser.add_argument(
        "--records-from", help="folder of Alpaca records (*.json) to repeat; the project's demo records"
    )
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--backends", nargs="+", default=["hf"], help="values of --tokenizer-backend to measure")
    parser.add_argument("--larger", type=int, default=1, help="measure an input this many times as large too")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--folder", help="for input and output, instead of the system's folder of temporary files")
    parser.add_argument("--raw", help=argparse.SUPPRESS)
    return parser.parse_args()


def _records(folder: str | None) -> list[dict[str, str]]:
    """Alpaca records to repeat."""
    if folder:
        files = sorted(Path(folder).glob("*.json"))
        found = [record for file in files for record in json.loads(file.read_text(encoding="utf-8"))]
        return [record for record in found if {"instruction", "output"} <= record.keys()]
    talks = [json.loads(line)["conversations"] for line in _DEMO.read_text(encoding="utf-8").splitlines()]
    pairs = [(talk[0]["value"], talk[-1]["value"]) for talk in talks]
    records = []
    for number, (question, answer) in enumerate(pairs):
        # The demo's answers are short; several of them are as long as one of a usual set.
        following = number
        while len(answer) < _TYPICAL_CHARACTERS:
            following = (following + 1) % len(pairs)
            answer += "\n\n" + pairs[following][1]
        records.append({"instruction": question, "input": "", "output": answer})
    return records


def _write_input(file: Path, options: argparse.Namespace, count: int) -> Path:
    """Repeat the records, with a counter at the end of each output, so that no two are alike."""
    records = _records(options.records_from)
    with file.open("w", encoding="utf-8") as lines:
        for number in range(count):
            record = records[number % len(records)]
            lines.write(json.dumps({**record, "output": f"{record['output']} {number}"}, ensure_ascii=False) + "\n")
    return file


def _measure(inputs: dict[int, Path], place: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over runs, one of each kind in turn."""
    tokens = 0
    raw: list[Run] = []
    ours: dict[str, list[Run]] = {backend: [] for backend in options.backends}
    larger: dict[str, list[Run]] = {backend: [] for backend in options.backends}
    for _ in range(options.runs):
        raw.append(_run(_raw_command(inputs[1], options)))
        for backend in options.backends:
            ours[backend].append(_run(_our_command(inputs[1], place, backend, options)))
            tokens = json.loads((place / "out.manifest.json").read_text(encoding="utf-8"))["tokens"]
            if options.larger > 1:
                larger[backend].append(_run(_our_command(inputs[options.larger], place, backend, options)))
    floor = statistics.median(run.result["seconds"] for run in raw)
    figures: dict[str, Any] = {"tokens": tokens, "raw": {**asdict(_median(raw)), "encode_seconds": floor}}
    for backend in options.backends:
        run = _median(ours[backend])
        found = {
            **asdict(run),
            "records_per_second": options.records / run.wall,
            "tokens_per_second": tokens / run.wall,
            "megabytes_per_second": inputs[1].stat().st_size / 1e6 / run.wall,
            "raw_encode_seconds_over_ours": floor / run.wall,
        }
        if options.larger > 1:
            more = _median(larger[backend])
            steady = (more.wall - run.wall) / (options.larger - 1)
            found["larger"] = {
                **asdict(more),
                "times_the_wall": more.wall / run.wall,
                "times_the_memory": more.memory / run.memory,
                "steady_records_per_second": options.records / steady,
                "steady_rate_over_raw": floor / steady,
            }
        figures[backend] = found
    return figures


def _our_command(file: Path, place: Path, backend: str, options: argparse.Namespace) -> list[str]:
    flags = {
        "input": file,
        "output-prefix": place / "out",
        "tokenizer-name-or-path": options.tokenizer,
        "prompt-type": "qwen3",
        "workers": options.workers,
    }
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    return [sys.executable, str(ROOT / "tools" / "preprocess_data.py"), *words, "--tokenizer-backend", backend]


def _raw_command(file: Path, options: argparse.Namespace) -> list[str]:
    words = ["--raw", str(file), "--tokenizer", options.tokenizer, "--workers", str(options.workers)]
    return [sys.executable, str(Path(__file__).resolve()), *words]


def _encode_raw(file: str, tokenizer: str, threads: int) -> dict[str, float]:
    """What the raw library takes for the texts of an input: prompts and answers as the template writes them."""
    os.environ.update(TOKENIZERS_PARALLELISM="true", RAYON_NUM_THREADS=str(threads))
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(Path(tokenizer) / "tokenizer.json"))
    texts = []
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            prompt = "\n".join(filter(None, (record["instruction"], record.get("input"))))
            texts.append(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
            texts.append(f"{record['output']}<|im_end|>\n")
    started, tokens = time.monotonic(), 0
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        batch = backend.encode_batch(texts[start : start + _TEXTS_AT_ONCE], add_special_tokens=False)
        tokens += sum(len(encoding.ids) for encoding in batch)
    return {"seconds": time.monotonic() - started, "tokens": tokens}


def _run(command: list[str]) -> Run:
    """Run a command to its end; raises CalledProcessError where it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in _SET_BY_COMMANDS}
    environment["PYTHONPATH"] = str(ROOT)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = psutil.Popen(command, stdout=output, stderr=output, env=environment)
        peak = 0.0
        while True:
            peak = max(peak, _memory(process))
            with contextlib.suppress(psutil.TimeoutExpired):
                code = process.wait(_SAMPLE_SECONDS)
                break
        wall = time.monotonic() - started
        output.seek(0)
        printed = output.read().decode(errors="replace")
    if code:
        raise SystemExit(f"{' '.join(command)} failed with exit code {code}:\n{printed}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    last = printed.strip().splitlines()[-1]
    return Run(wall, cpu, peak, json.loads(last) if last.startswith("{") else {})


_SET_BY_COMMANDS = ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def _memory(process: psutil.Process) -> float:
    """MiB of a process and all that it started: PSS on Linux, elsewhere USS, which leaves shared memory out."""
    total = 0
    for one in _tree(process):
        with contextlib.suppress(psutil.Error):
            found = one.memory_full_info()
            total += getattr(found, "pss", found.uss)
    return total / 2**20


def _tree(process: psutil.Process) -> Iterator[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        yield process
        yield from process.children(recursive=True)


def _median(runs: list[Run]) -> Run:
    """The run of median wall time."""
    return sorted(runs, key=lambda run: run.wall)[len(runs) // 2]


def _print(figures: dict[str, Any]) -> None:
    raw = figures["raw"]
    print(
        f"{figures['records']:,} records, {figures['bytes'] / 1e6:.1f} MB, {figures['tokens']:,} tokens;"
        f" {figures['workers']} workers; {figures['machine']}; {figures['date']}; medians of {figures['runs']}"
    )
    print(f"raw tokenizers  encode_batch {raw['encode_seconds']:.2f} s; {raw['cpu']:.1f} CPU s with its start")
    for backend in [name for name in ("auto", "hf", "fast") if name in figures]:
        run = figures[backend]
        print(
            f"{backend:<6} wall {run['wall']:.2f} s, CPU {run['cpu']:.1f} s, peak {run['memory']:.0f} MiB;"
            f" {run['records_per_second']:,.0f} records/s, {run['tokens_per_second']:,.0f} tokens/s,"
            f" {run['megabytes_per_second']:.1f} MB/s; raw encode time / ours {run['raw_encode_seconds_over_ours']:.2f}"
        )
        if more := run.get("larger"):
            print(
                f"       larger: wall {more['wall']:.2f} s ({more['times_the_wall']:.1f} times), peak"
                f" {more['memory']:.0f} MiB ({more['times_the_memory']:.2f} times); steady"
                f" {more['steady_records_per_second']:,.0f} records/s, {more['steady_rate_over_raw']:.2f} of raw"
            )


if __name__ == "__main__":
    sys.exit(main())
