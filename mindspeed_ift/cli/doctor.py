"""``mindspeed-ift doctor``: what is wrong with this machine, or with these flags, data and weights; and the remedies."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from mindspeed_ift import __version__
from mindspeed_ift.config.doctor import DoctorConfig

if TYPE_CHECKING:
    from mindspeed_ift.devices.diagnosis.finding import Finding

_COLOURS = {"green": "\033[32m", "yellow": "\033[33m", "red": "\033[31m"}
_SWITCHES = ("--json", "--no-json")


def main(argv: list[str]) -> int:
    """Examine and print; 1 if something is red.

    Flags are read in a process of the doctor's, so that it speaks where their reader cannot be imported.
    """
    if {"-h", "--help"} & set(argv):
        from mindspeed_ift.config.accepted import ACCEPTED
        from mindspeed_ift.config.flags import parse

        parse(DoctorConfig, ["--help"], program="doctor", description="Does this machine do?", accepted=ACCEPTED)
    from mindspeed_ift.devices.diagnosis.finding import worst
    from mindspeed_ift.doctor.examine import examine

    as_json = [word for word in argv if word in _SWITCHES][-1:] == ["--json"]
    findings = examine([word for word in argv if word not in _SWITCHES])
    print(_json(findings) if as_json else _text(findings))
    return 1 if worst(findings) == "red" else 0


def _json(findings: list[Finding]) -> str:
    from dataclasses import asdict

    from mindspeed_ift.devices.diagnosis.finding import worst

    content = {"mindspeed_ift": __version__, "time": _now(), "level": worst(findings)}
    return json.dumps(content | {"findings": [asdict(one) for one in findings]}, indent=2, ensure_ascii=False)


def _text(findings: list[Finding]) -> str:
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    lines = [f"mindspeed-ift {__version__} doctor, {_now()}"]
    width = min(30, max(len(one.name) for one in findings))
    for one in findings:
        level = f"{one.level:<6}"
        level = f"{_COLOURS[one.level]}{level}\033[0m" if coloured else level
        lines.append(f"{level}  {one.name:<{width}}  {one.found}")
        if one.remedy:
            lines.append(f"        {'':<{width}}  -> {one.remedy}")
    counts = [f"{sum(one.level == level for one in findings)} {level}" for level in ("red", "yellow", "green")]
    return "\n".join([*lines, ", ".join(counts)])


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
