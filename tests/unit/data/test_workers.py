"""How worker processes start, and what they must not cost."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mindspeed_ift.data import workers
from mindspeed_ift.data.encode import EncodeOptions
from mindspeed_ift.data.formats import AlpacaFormat
from mindspeed_ift.data.records import Origin
from mindspeed_ift.data.tokenizer import Tokenizer, load_tokenizer
from mindspeed_ift.data.workers import Job, Worker, WorkerPool
from tests.tiny_tokenizer import make_tiny_tokenizer

JOB = Job(AlpacaFormat(), "qwen3", None, EncodeOptions())
RECORDS = [
    ({"instruction": f"question {number}", "input": "", "output": "answer " * (number % 5)}, Origin("a.jsonl", number))
    for number in range(20)
]

# Runs the command as a user does, then says how the processes were started and what was imported.
COMMAND = """
import concurrent.futures
import sys
from mindspeed_ift.cli.preprocess import main
methods = []
class Pool(concurrent.futures.ProcessPoolExecutor):
    def __init__(self, count, context, **options):
        methods.append(context.get_start_method())
        super().__init__(count, context, **options)
concurrent.futures.ProcessPoolExecutor = Pool
assert main(sys.argv[1:]) == 0
heavy = [name for name in ("torch", "megatron", "transformers", "datasets") if name in sys.modules]
print("started by", methods, "with", heavy)
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(make_tiny_tokenizer(tmp_path_factory.mktemp("tiny")))


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_the_command_forks_and_imports_nothing_heavy(tmp_path: Path, tokenizer: Tokenizer) -> None:
    records = tmp_path / "in.jsonl"
    records.write_text('{"instruction": "one", "input": "", "output": "two"}\n' * 3, encoding="utf-8")
    flags = {"input": records, "output-prefix": tmp_path / "out", "tokenizer-name-or-path": tokenizer.path}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words, "--workers", "2", "--prompt-type", "qwen3"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "started by ['fork'] with []" in done.stdout


def test_the_same_where_a_thread_forbids_forking(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CHUNK", 7)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    methods = []

    class Pool(workers.ProcessPoolExecutor):
        def __init__(self, count: int, context: object, **options: object) -> None:
            methods.append(context.get_start_method())
            super().__init__(count, context, **options)

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Pool)
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        found = list(WorkerPool(tokenizer, 2).encode_all(JOB, RECORDS))
    finally:
        ended.set()
        thread.join()
    worker = Worker(JOB, tokenizer)
    expected = [worker.encode(RECORDS[start : start + 7]) for start in range(0, 20, 7)]
    assert methods == ["spawn"]
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one.ledger == other.ledger
        for name, values in other.values.items():
            assert one.values[name].tolist() == values.tolist()
            assert one.lengths[name].tolist() == other.lengths[name].tolist()
