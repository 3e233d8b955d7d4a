"""What a check found: green, yellow or red, in words, with the remedy; and how a process tells another of such findings."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mindspeed_ift.config.errors import RunError, UserError, first_line

Level = Literal["green", "yellow", "red"]
LEVELS: tuple[Level, ...] = ("green", "yellow", "red")
"""From best to worst."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: what was looked at.
        level: green: good. yellow: it works, or may, but not well. red: it does not work.
        found: in a line.
        remedy: what to do, in a line; empty where green.
    """

    name: str
    level: Level
    found: str
    remedy: str = ""


Check = Callable[[], list[Finding]]


def worst(findings: list[Finding]) -> Level:
    """The worst level among them; green of none."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="green")


def guarded(name: str, check: Check) -> list[Finding]:
    """What the check finds; whatever it raises is a finding too."""
    try:
        return check()
    except (UserError, RunError) as error:  # say themselves what to do
        return [Finding(name, "red", str(error), "do what the line says")]
    except ModuleNotFoundError as error:
        return [Finding(name, "red", first_line(error), f"install the package that has {error.name}")]
    except Exception as error:  # noqa: BLE001 - a check that breaks must not take the others with it
        return [Finding(name, "red", f"{type(error).__name__}: {first_line(error)}", "report it with all of this text")]


class Account:
    """Writes what a process finds into a file line by line, so that it outlives the process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def step(self, name: str, check: Check) -> None:
        """Run a check; if the process dies of it, the file tells of which."""
        self._write({"begun": name})
        for finding in guarded(name, check):
            self._write({"finding": asdict(finding)})

    def tell(self, **facts: Any) -> None:
        """Facts that the reader needs, as JSON."""
        self._write({"facts": facts})

    def end(self) -> None:
        """All was done."""
        self._write({"ended": True})
        sys.stdout.flush()

    def _write(self, content: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")


@dataclass
class Told:
    """What is read of an `Account`.

    Attributes:
        findings: in their order.
        facts: of all `Account.tell`.
        unfinished: the step in which the process ended; None: it got to its end.
    """

    findings: list[Finding]
    facts: dict[str, Any]
    unfinished: str | None


def read_account(path: Path, first: str) -> Told:
    """Read what a process has told.

    Args:
        path: of its `Account`; may not be there.
        first: what it does before its first step.
    """
    told = Told([], {}, first)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for line in text.splitlines():
        content = json.loads(line)
        if "finding" in content:
            told.findings.append(Finding(**content["finding"]))
        told.facts.update(content.get("facts", {}))
        told.unfinished = None if "ended" in content else content.get("begun", told.unfinished)
    return told
