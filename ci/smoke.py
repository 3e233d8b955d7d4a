"""A machine in, a table of what it does as the CPU does out; ``ci/smoke.sh`` starts it.

Every training of a tiny model is compared with one process of the CPU that had the same weights, data and flags but those
of the layout: `TOLERANCES`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.training_runs import MODES, losses, make_datasets, make_hugging_face_model  # noqa: E402

TOLERANCES = {"fp32": 1e-4, "bf16": 1e-2}
"""Of each of `STEPS` losses, relative, against the CPU. fp32: sums in another order, carried on by the steps; matrix units
that silently keep 10 bits of fp32 (TF32, HF32) are beyond it, and are to be switched off. bf16: 8 bits, rounded elsewhere."""

STEPS = 4
LIMIT = 400
"""Seconds that the trainings of one world may take."""

Result = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Row:
    """A line of the table: what was tried, how it went, and in numbers or words."""

    what: str
    result: Result
    told: str


@dataclass(frozen=True)
class Training:
    """One training: its name, mode of `MODES`, precision, and the flags of its layout."""

    name: str
    mode: str
    precision: str
    layout: str = ""

    @property
    def reference(self) -> str:
        """Name of the training on one process of the CPU to compare with."""
        return f"CPU, {self.mode}, {self.precision}"


def trainings(processes: int, quick: bool) -> tuple[list[Training], list[Training], list[Row]]:
    """On one device, on all, and what so few cannot do; quick: of packed rows in bf16 alone."""
    precisions = ["bf16"] if quick else list(TOLERANCES)
    modes = [(mode, precision) for mode in (["packed"] if quick else MODES) for precision in precisions]
    one = [Training(f"1 device, {mode}, {precision}", mode, precision) for mode, precision in modes]
    if processes == 1:
        return one, [], [Row("all devices", "skipped", "there is one")]
    layouts = {"fixed": "--use-distributed-optimizer", "dynamic": "", "packed": ""}
    if processes % 2 == 0:
        layouts["dynamic"] = "--tensor-model-parallel-size 2 --sequence-parallel"
    start = f"{processes} devices"
    every = [Training(f"{start}, {mode}, {precision}", mode, precision, layouts[mode]) for mode, precision in modes]
    contexts, skipped = context_layouts(processes)
    for word, layout in contexts.items():
        every += [Training(f"{start}, {word}, {one}", "packed", one, layout) for one in precisions]
    return one, every, [Row(f"{start}, {word}", "skipped", "needs a multiple of 4 devices") for word in skipped]


def context_layouts(processes: int) -> tuple[dict[str, str], list[str]]:
    """Context parallel algorithm -> its flags on so many devices; and those that so many cannot run."""
    size = next((size for size in (4, 2) if processes % size == 0), processes)
    # Four heads are dealt by Ulysses; a hybrid is a ring of two times two.
    fitting = {"megatron_cp_algo": True, "ulysses_cp_algo": size in (2, 4), "hybrid_cp_algo": size == 4}
    fitting["kvallgather_cp_algo"] = True
    flags = {word: f"--context-parallel-size {size} --context-parallel-algo {word}" for word in fitting}
    flags["hybrid_cp_algo"] += " --ulysses-degree-in-cp 2"
    return {word: flags[word] for word, fits in fitting.items() if fits}, [
        word for word in fitting if not fitting[word]
    ]


class Smoke:
    """The whole trial.

    Args:
        folder: for all that is made.
        device: of the environment variable MINDSPEED_IFT_DEVICE.
        processes: devices to train on.
        quick: packed rows in bf16 alone.
    """

    def __init__(self, folder: Path, device: str, processes: int, quick: bool = False) -> None:
        self.folder, self.device, self.processes, self.quick = folder, device, processes, quick
        self.batch = processes * -(-8 // processes)
        self.data = make_datasets(folder)
        self.weights = make_hugging_face_model(folder / "model", tied=False, vocab_size=400)
        self.rows: list[Row] = []
        self.failures: dict[str, str] = {}

    def flags(self, training: Training, save: str, *more: str) -> list[str]:
        """The command line of a training that saves into a folder of that name."""
        line = ["--data-path", str(self.data[training.mode]), *MODES[training.mode], "--load", str(self.weights)]
        line += ["--enable-hf2mg-convert", "--micro-batch-size", "1", "--global-batch-size", str(self.batch)]
        line += ["--train-iters", str(STEPS), "--lr", "1e-3", "--save", str(self.folder / "runs" / save)]
        line += ["--bf16"] if training.precision == "bf16" else []
        return [*line, *training.layout.split(), *more]

    def train(self, lines: Sequence[tuple[str, list[str]]], processes: int, device: str) -> None:
        """Run these in one world after another, until each was tried; `failures` gets those that did not end well."""
        left = list(lines)
        while left:
            jobs = self.folder / f"jobs_{device}_{processes}_{len(left)}.json"
            jobs.write_text(json.dumps(left), encoding="utf-8")
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
            code, said = self.call([*launcher, str(ROOT / "ci/smoke_worker.py"), str(jobs)], device)
            account = Path(f"{jobs}.account")
            told = account.read_text(encoding="utf-8").splitlines() if account.is_file() else []
            done = [line.removeprefix("done ") for line in told if line.startswith("done ")]
            left = [line for line in left if line[0] not in done]
            if left:
                name, _ = left.pop(0)
                reasons = [line for line in told if line.startswith(f"failed {name}: ")]
                last = (said.strip().splitlines() or [""])[-1]
                self.failures[name] = reasons[0].split(": ", 1)[1] if reasons else f"ended with {code}: {last}"
                if not told:  # nothing could begin, so nothing else will
                    self.failures.update({name: "as the one before" for name, _ in left})
                    return

    def call(self, words: list[str], device: str = "") -> tuple[int, str]:
        """Exit code (124: it took too long) and all that Python says of a script; a log in the folder keeps it."""
        command = [sys.executable, *words]
        environment = dict(os.environ, MINDSPEED_IFT_DEVICE=device or self.device)
        if environment["MINDSPEED_IFT_DEVICE"] == "cpu":
            environment["OMP_NUM_THREADS"] = "1"
        with (self.folder / "smoke.log").open("a+", encoding="utf-8") as log:
            log.write(f"\n$ {' '.join(command)}\n")
            log.flush()
            start = log.tell()
            try:
                code = subprocess.run(
                    command, env=environment, stdout=log, stderr=log, timeout=LIMIT, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                code = 124
            log.seek(start)
            return code, log.read()

    def doctor(self) -> list[dict[str, str]]:
        """A row for the machine, and one for each kernel, which the doctor holds against the CPU in bf16 and fp32."""
        report = self.folder / "doctor.json"
        command = [sys.executable, "-m", "mindspeed_ift.cli.main", "doctor", "--json"]
        with report.open("w", encoding="utf-8") as file:
            subprocess.run(command, stdout=file, timeout=LIMIT, check=False)
        findings = json.loads(report.read_text(encoding="utf-8"))["findings"]
        kernels = [one for one in findings if one["name"].startswith("kernel ")]
        bad = [f"{one['name']}: {one['found']}" for one in findings if one["level"] == "red" and one not in kernels]
        self.add("doctor", not bad, "; ".join(bad) or "nothing is red")
        for one in kernels:
            self.add(one["name"], one["level"] == "green", one["found"])
        if not kernels:
            self.add("kernels", False, "the doctor could not try them")
        return findings

    def add(self, what: str, good: bool, told: str) -> None:
        """A row, printed at once."""
        self.rows.append(Row(what, "ok" if good else "failed", told))
        print(describe(self.rows[-1]), flush=True)

    def tune(self) -> None:
        """The CPU, one device, all devices; then a row for each training on a device."""
        one, every, skipped = trainings(self.processes, self.quick)
        references = {training.reference: training for training in one}
        self.train([(name, self.flags(training, name)) for name, training in references.items()], 1, "cpu")
        if self.device != "cpu":  # else they are the same
            self.train([(each.name, self.flags(each, each.name)) for each in one], 1, self.device)
        self.train([(each.name, self.flags(each, each.name)) for each in every], self.processes, self.device)
        for name in references:
            self.learns(name)
        for training in (*(one if self.device != "cpu" else ()), *every):
            self.compare(training.name, training.name, training)
        for row in skipped:
            self.rows.append(row)
            print(describe(row), flush=True)

    def learns(self, name: str) -> None:
        """A row: the loss of a run on the CPU falls."""
        if name in self.failures:
            self.add(name, False, self.failures[name])
            return
        found = losses(self.folder / "runs" / name)
        self.add(
            name, len(found) == STEPS and found[-1] < found[0], f"losses {', '.join(f'{one:.4f}' for one in found)}"
        )

    def compare(self, what: str, folder: str, training: Training) -> None:
        """A row: losses of a run against those of the CPU."""
        failure = self.failures.get(what) or self.failures.get(training.reference)
        if failure:
            self.add(what, False, failure)
            return
        runs, tolerance = self.folder / "runs", TOLERANCES[training.precision]
        found, expected = losses(runs / folder), losses(runs / training.reference)
        if len(found) != STEPS or len(expected) != STEPS:
            self.add(what, False, f"{len(found)} losses, on the CPU {len(expected)}, instead of {STEPS}")
            return
        far = max(abs(one / other - 1) for one, other in zip(found, expected))
        self.add(what, far <= tolerance, f"losses within {far:.1e} of the CPU's (at most {tolerance:.0e})")

    def resume(self) -> None:
        """Stop in the middle, go on: the losses of a run that did not stop."""
        devices = "1 device" if self.processes == 1 else f"{self.processes} devices"
        training = Training(f"{devices}, resume", "packed", "bf16")
        half = str(STEPS // 2)
        first = self.flags(training, "resume", "--save-interval", half, "--exit-interval", half)
        again = [word for word in self.flags(training, "resume") if word != "--enable-hf2mg-convert"]
        again[again.index("--load") + 1] = str(self.folder / "runs/resume")
        self.train([("stop", first), (training.name, again)], self.processes, self.device)
        if "stop" in self.failures:
            self.failures[training.name] = self.failures["stop"]
        self.compare(training.name, "resume", training)

    def use(self) -> None:
        """Convert what was trained, and let it answer."""
        tuned, answers = self.folder / "tuned", self.folder / "answers.jsonl"
        words = ["--load-dir", str(self.folder / "runs/resume"), "--hf-cfg-dir", str(self.weights)]
        code, said = self.call([str(ROOT / "tools/convert_ckpt.py"), *words, "--save-dir", str(tuned)])
        self.add("convert", code == 0 and any(tuned.glob("*.safetensors")), last_line(said))
        words = ["--load", str(tuned), "--tokenizer-name-or-path", str(self.folder / "tokenizer")]
        words += ["--prompt", "3 and 6", "--max-new-tokens", "8", "--output", str(answers)]
        code, said = self.call([str(ROOT / "tools/inference.py"), *words])
        self.add("generate", code == 0 and answers.is_file(), last_line(said))


def last_line(said: str) -> str:
    """The last line that is not empty."""
    return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")


def describe(row: Row) -> str:
    """A row as text."""
    return f"{row.result:<8}{row.what:<44}{row.told}"


def devices(device: str) -> int:
    """Of this machine; two processes on a CPU."""
    if device == "cpu":
        return 2
    code = "from mindspeed_ift.devices.device import count; print(count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {last_line(done.stderr)}")
    return int(done.stdout.splitlines()[-1])


def main() -> int:
    """Try everything; 1 if a row failed."""
    parser = argparse.ArgumentParser(description="Whether this machine trains as the CPU does.")
    parser.add_argument("--processes", type=int, help="devices to train on; default: all, on a CPU 2")
    parser.add_argument(
        "--quick", action="store_true", help="packed rows in bf16 only, instead of all modes and fp32 too"
    )
    parser.add_argument("--output", type=Path, help="folder for smoke.json and what is made; default: a temporary one")
    options = parser.parse_args()
    device, start = os.environ.get("MINDSPEED_IFT_DEVICE") or "cpu", time.time()
    processes = options.processes or devices(device)
    folder = options.output or Path(tempfile.mkdtemp(prefix="smoke_"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"--output {folder} is not empty; name another folder")
    smoke = Smoke(folder.absolute(), device, processes, options.quick)
    print(f"{device}, {processes} processes, {folder}", flush=True)
    findings = smoke.doctor()
    smoke.tune()
    smoke.resume()
    smoke.use()
    failed = sum(row.result == "failed" for row in smoke.rows)
    content: dict[str, Any] = {"device": device, "processes": processes, "seconds": round(time.time() - start)}
    content |= {"failed": failed, "rows": [asdict(row) for row in smoke.rows], "doctor": findings}
    (folder / "smoke.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    print(
        f"{len(smoke.rows) - failed} of {len(smoke.rows)} as they must be; {content['seconds']} s; {folder}/smoke.json"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
