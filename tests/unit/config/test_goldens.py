"""Flags are public: a new, renamed or changed one shows as a difference of the golden files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.goldens import CONFIGS, GOLDEN, REFRESH, config_text, flags_text


def test_every_flag_stands_in_the_golden_file() -> None:
    written = (GOLDEN / "flags.txt").read_text(encoding="utf-8").splitlines()
    now = flags_text().splitlines()
    added, gone = sorted(set(now) - set(written)), sorted(set(written) - set(now))
    assert (added, gone) == ([], []), REFRESH
    assert written == now, REFRESH


@pytest.mark.parametrize("name", CONFIGS)
def test_a_command_line_comes_to_the_golden_configuration(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[3])
    written = (GOLDEN / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    assert config_text(name).splitlines() == written.splitlines(), REFRESH


def test_every_golden_configuration_is_tested() -> None:
    assert {path.stem for path in (GOLDEN / "configs").iterdir()} == set(CONFIGS)
