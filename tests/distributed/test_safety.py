"""What happens to one rank of two is answered by both: a batch that is no number, a signal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.worlds import run
from tests.training_runs import MODES, make_datasets, make_hugging_face_model, records

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data parallel ranks: undisturbed, poisoned, stopped and gone on; and two pipeline stages, one of them stopped."""
    folder = tmp_path_factory.mktemp("safety")
    data = make_datasets(folder)
    weights = make_hugging_face_model(folder / "hf", tied=True, vocab_size=400)

    def line(name: str, *flags: str) -> list[str]:
        start = [] if "--load" in flags else ["--load", str(weights), "--enable-hf2mg-convert"]
        words = ["--data-path", str(data["packed"]), *MODES["packed"], "--lr", "1e-3", "--train-iters", "4"]
        words += ["--lr-decay-iters", "9"]
        words += ["--global-batch-size", "4", "--save", str(folder / name)]
        return [*words, *start, *flags]

    split = ["--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather"]
    pipeline = ["--pipeline-model-parallel-size", "2"]
    of_damaged = ["--load", str(folder / "poisoned"), "--train-iters", "6", "--save-interval", "1", "--keep-last", "1"]
    early = ["--lr", "1e-30", "--valid-data-path", str(data["fixed"]), "--eval-interval", "1", "--train-iters", "9"]
    early += ["--early-stopping-patience", "2", "--save-best", "--keep-last", "1"]
    lines = [
        line("whole", *split),
        ["poison", *line("poisoned", *split, "--max-skipped-steps", "1", "--save-interval", "1")],
        ["stop", *line("stopped", *split)],
        line("stopped", *split, "--load", str(folder / "stopped")),
        ["stop", *line("stopped stage", *pipeline)],
        line("early", *early),
        line("early", *early, "--load", str(folder / "early")),
        ["hang", *line("hung", "--distributed-timeout-minutes", "12")],
        ["damage", *line("gone on", *split, *of_damaged)],
    ]
    run(lines, 2, worker="tests.distributed.eventful_worker")
    return folder


def kept(folder: Path) -> tuple[set[str], tuple[int, int]]:
    """Checksums of what a checkpoint holds beside the number of the step, of every rank; updates and schedule."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    files = {facts["xxh3_128"] for name, facts in manifest["files"].items() if name.endswith("distcp")}
    assert len(files) >= 3
    return files, (manifest["optimizer_steps"], manifest["schedule_steps"])


def test_a_poisoned_batch_moves_nothing_on_either_rank(runs: Path) -> None:
    """Weights and the state of both ranks' optimizers are those of the step before, and the run goes on."""
    before, refused, after = (kept(runs / f"poisoned/iter_000000{step}") for step in (2, 3, 4))
    assert before == refused and not before[0] & after[0]
    assert (before[1], after[1]) == ((2, 2), (3, 3))
    whole, poisoned = records(runs / "whole"), records(runs / "poisoned")
    assert poisoned[:2] == whole[:2]
    assert poisoned[2]["refused"] == "the loss is nan" and "loss" not in poisoned[2]
    assert [one.get("skipped_steps") for one in poisoned] == [None, None, 1, 1] and "loss" in poisoned[3]
    samples = [json.loads(line) for line in (runs / "poisoned/refused_step_3.jsonl").read_text("utf-8").splitlines()]
    assert [(one["data_rank"], one["micro_batch"]) for one in samples] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(one["text"] and one["input_ids"] for one in samples)


def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_to_the_bit(runs: Path) -> None:
    for name in ("stopped", "stopped stage"):
        assert (runs / name / "iter_0000003").is_dir()
    assert not (runs / "stopped stage/iter_0000004").exists()
    assert records(runs / "stopped") == records(runs / "whole")
    assert kept(runs / "stopped/iter_0000004") == kept(runs / "whole/iter_0000004")


def test_where_one_rank_finds_damage_all_go_on_from_the_checkpoint_before(runs: Path) -> None:
    """To the bit; older checkpoints of the run go, those that it was loaded from stay."""
    gone_on, before = records(runs / "gone on"), records(runs / "poisoned")
    assert [one["iteration"] for one in gone_on] == [4, 5, 6]
    assert gone_on[0] == before[3]
    assert [path.name for path in (runs / "gone on").glob("*iter_*")] == ["iter_0000006"]
    assert len(list((runs / "poisoned").glob("iter_*"))) == 4


def test_without_improvement_the_run_stops_and_the_best_is_kept(runs: Path) -> None:
    """With weights that do not move the first evaluation is the best. Started again it does nothing."""
    found = [(one["iteration"], "loss" in one) for one in records(runs / "early")]
    assert found == [(step, training) for step in (1, 2, 3) for training in (True, False)]
    assert sorted(path.name for path in (runs / "early").glob("iter_*")) == ["iter_0000001", "iter_0000003"]
    assert (runs / "early/best.txt").read_text() == "1\n"


def test_a_hang_ends_with_the_stack_of_each_rank(runs: Path) -> None:
    """The last rank sleeps where it should take its third step (of minutes of a second); the other waits for it."""
    stacks = sorted((runs / "hung/hang_step_3").iterdir())
    assert [path.name for path in stacks] == ["rank_00000.txt", "rank_00001.txt"]
    waits, sleeps = (path.read_text("utf-8") for path in stacks)
    assert sleeps.startswith("hang (distributed/eventful_worker.py:") and "in hang" in sleeps and "tune.py" in sleeps
    assert "in train_step" in waits and "in hang" not in waits
    assert len(records(runs / "hung")) == 2
