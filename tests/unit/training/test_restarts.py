"""What processes that torchrun has started again go on from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mindspeed_ift.checkpoint import megatron
from mindspeed_ift.config.flags import parse
from mindspeed_ift.config.tuning import TuneConfig
from mindspeed_ift.data.staging import write_text
from mindspeed_ift.training.restarts import flags_after_restart, forget

WEIGHTS = "--load hf --enable-hf2mg-convert"
ADAPTERS = "--lora-target-modules linear_qkv"


class Run:
    """A command line that is started, and started again."""

    def __init__(self, save: Path, monkeypatch: pytest.MonkeyPatch, flags: str = WEIGHTS) -> None:
        self.save, self.monkeypatch = save, monkeypatch
        self.config = parse(TuneConfig, [*flags.split(), "--save", str(save)], program="test")
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")

    def attempt(self, number: int, of_peers: tuple[int, ...] = ()) -> TuneConfig:
        """The flags that this one goes on with."""
        self.monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(number))
        told: list[Any] = []

        def gather(value: Any) -> list[Any]:
            told.append(value)
            return [value, *of_peers] if len(told) == 1 else [value]

        return flags_after_restart(self.config, SimpleNamespace(rank=0, gather=gather))  # type: ignore[arg-type]

    def saves(self, step: int = 5) -> None:
        """A checkpoint, as far as its name."""
        write_text(self.save / megatron.TRACKER, f"{step}\n")


def test_a_restart_goes_on_from_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run", monkeypatch, f"{WEIGHTS} --finetune --no-load-optim --no-load-rng")
    assert run.attempt(0) == run.config
    assert run.attempt(1) == run.config, "killed before anything was saved"
    run.saves()
    flags = run.attempt(2).run
    assert (flags.load, flags.enable_hf2mg_convert, flags.finetune) == (run.save, False, False)
    assert flags.load_optim and flags.load_rng


def test_it_is_enough_that_a_peer_was_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run", monkeypatch)
    run.attempt(0)
    run.saves()
    assert run.attempt(0, of_peers=(1,)).run.load == run.save


def test_what_another_run_left_there_is_not_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch)
    run.saves()
    run.attempt(0)
    assert run.attempt(1) == run.config
    run.saves()  # the same step, by this run
    assert run.attempt(2).run.load == run.save


def test_killed_before_the_mark_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch)
    run.saves()
    assert run.attempt(1) == run.config


def test_adapters_keep_the_weights_of_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, f"{WEIGHTS} {ADAPTERS}")
    run.attempt(0)
    run.saves()
    config = run.attempt(1)
    assert config.lora.lora_load == run.save and config.run == run.config.run


@pytest.mark.parametrize("flags", ["--load {}", f"{WEIGHTS} {ADAPTERS} --lora-load {{}}"])
def test_a_line_that_goes_on_by_itself_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str
) -> None:
    run = Run(tmp_path, monkeypatch, flags.format(tmp_path))
    run.attempt(0)
    run.saves()
    assert run.attempt(1) == run.config


def test_the_mark_goes_when_the_run_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch)
    forget(run.config)
    run.attempt(0)
    assert list(tmp_path.iterdir())
    forget(run.config)
    assert not list(tmp_path.iterdir())


def test_without_restarts_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run", monkeypatch)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert run.attempt(0) == run.config and not run.save.exists()
