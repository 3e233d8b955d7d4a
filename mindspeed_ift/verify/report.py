"""What a command that checks found: a row of a table for each thing examined, a line for each problem."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Check:
    """One row of the table.

    Attributes:
        name: What is checked.
        examined: How much of it.
        problems: A line each.
    """

    name: str
    examined: str = ""
    problems: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What was found.

    Attributes:
        checks: All that was checked.
        notices: What could not be, and why.
    """

    checks: list[Check] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """A line for each problem; none says that the dataset is whole."""
        return [line for check in self.checks for line in check.problems]

    def check(self, name: str) -> Check:
        """A new row."""
        self.checks.append(Check(name))
        return self.checks[-1]
