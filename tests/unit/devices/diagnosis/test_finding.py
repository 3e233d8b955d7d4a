"""Findings, and what is left of them when the process that found them dies."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.devices.diagnosis.finding import Account, Finding, guarded, read_account, worst

GREEN = Finding("one", "green", "well")


def raising(error: Exception) -> list[Finding]:
    raise error


@pytest.mark.parametrize(
    ("error", "found", "remedy"),
    [
        (UserError("--lr is wrong; lower it"), "--lr is wrong; lower it", "do what the line says"),
        (
            ModuleNotFoundError("No module named 'yaml'", name="yaml"),
            "No module named 'yaml'",
            "install the package that has yaml",
        ),
        (KeyError("a"), "KeyError: 'a'", "report it with all of this text"),
    ],
)
def test_a_check_that_raises_is_a_red_line(error: Exception, found: str, remedy: str) -> None:
    assert guarded("it", lambda: raising(error)) == [Finding("it", "red", found, remedy)]


def test_the_worst() -> None:
    yellow, red = Finding("two", "yellow", "so", "do"), Finding("three", "red", "bad", "mend")
    assert [worst([]), worst([GREEN]), worst([red, yellow]), worst([GREEN, yellow])] == [
        "green",
        "green",
        "red",
        "yellow",
    ]


def test_an_account_outlives_its_process(tmp_path: Path) -> None:
    path = tmp_path / "account"
    assert read_account(path, "begin").unfinished == "begin"
    account = Account(path)
    account.step("one", lambda: [GREEN])
    account.tell(kind="cpu")
    account.step("two", lambda: raising(KeyError("a")))
    told = read_account(path, "begin")
    assert (
        told.unfinished == "two"
        and told.facts == {"kind": "cpu"}
        and [one.level for one in told.findings] == ["green", "red"]
    )
    account.end()
    assert read_account(path, "begin").unfinished is None
