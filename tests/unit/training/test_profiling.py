"""A trace has the chosen steps of the chosen ranks, and the names of a step's parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mindspeed_ift.config.profiling import ProfileFlags
from mindspeed_ift.config.tuning import RunFlags
from mindspeed_ift.devices.device import current
from mindspeed_ift.training.profiling import Profile, profile_folder


def run(folder: Path, flags: ProfileFlags, steps: range, rank: int = 0) -> list[set[str]]:
    """Names in each trace of a run whose steps are called after their numbers."""
    profile = Profile(flags, folder, current(), rank)
    for step in steps:
        profile.begin(step)
        with torch.profiler.record_function(f"the step {step}"):
            torch.ones(2).sum()
        profile.end(step)
    profile.close()
    return [names(path) for path in sorted(folder.glob("*.pt.trace.json"))]


def names(path: Path) -> set[str]:
    """Of the ranges that a run gave names to."""
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return {event["name"] for event in events if event.get("cat") == "user_annotation"}


def steps_of(names_: set[str]) -> set[str]:
    return {name for name in names_ if name.startswith("the step")}


def test_the_chosen_steps_are_traced(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ProfileFlags(profile=True, profile_step_start=2, profile_step_end=4)
    (found,) = run(tmp_path, flags, range(1, 6))
    assert steps_of(found) == {"the step 2", "the step 3"}
    assert {name for name in found if name.startswith("ProfilerStep")} == {"ProfilerStep#2", "ProfilerStep#3"}
    assert [path.name for path in tmp_path.iterdir()] == ["rank_0_from_step_2.pt.trace.json"]
    assert capsys.readouterr().out.startswith(f"profile: steps 2 to 3 of rank 0 are in {tmp_path}")


@pytest.mark.parametrize(
    ("steps", "expected"), [(range(3, 6), ["the step 3"]), (range(1, 3), ["the step 2"]), (range(4, 6), [])]
)
def test_a_run_that_begins_or_ends_between_them_has_its_part(tmp_path: Path, steps: range, expected: list[str]) -> None:
    flags = ProfileFlags(profile=True, profile_step_start=2, profile_step_end=4)
    found = run(tmp_path, flags, steps)
    assert [sorted(steps_of(one)) for one in found] == ([expected] if expected else [])


@pytest.mark.parametrize(("ranks", "traced"), [((1,), True), ((0, 2), False), ((-1,), True)])
def test_only_the_chosen_ranks_are_traced(tmp_path: Path, ranks: tuple[int, ...], traced: bool) -> None:
    flags = ProfileFlags(profile=True, profile_step_start=1, profile_step_end=2, profile_ranks=ranks)
    assert len(run(tmp_path, flags, range(1, 3), rank=1)) == traced
    assert [path.name for path in tmp_path.iterdir()] == ["rank_1_from_step_1.pt.trace.json"] * traced


def test_nothing_is_traced_unless_asked_for(tmp_path: Path) -> None:
    assert run(tmp_path, ProfileFlags(profile_step_start=1), range(1, 12)) == []


def test_where_traces_go() -> None:
    assert profile_folder(ProfileFlags(), RunFlags(save=Path("run")).save) == Path("run/profile")
    assert profile_folder(ProfileFlags(profile_save_path=Path("own")), Path("run")) == Path("own")
