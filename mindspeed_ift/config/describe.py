"""What the command line came to: every value and where it came from, the model, the layout."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.flags import Parsed, values
from mindspeed_ift.config.layout import Layout


def resolved(parsed: Parsed, architecture: Architecture, layout: Layout) -> dict[str, Any]:
    """Everything a run was asked for, in plain values.

    Args:
        parsed: the command line.
        architecture: of the model.
        layout: degrees of parallelism.

    Returns:
        ``flags`` by origin (flag, the name of a ``--config`` file, default), ``ignored`` flags, ``architecture``,
        ``layout``.
    """
    flags: dict[str, dict[str, Any]] = {}
    order = sorted(set(parsed.origins.values()), key=lambda origin: (origin == "default", origin != "flag", origin))
    for origin in order:
        flags[origin] = {
            name.replace("_", "-"): _plain(value)
            for name, value in values(parsed.config).items()
            if parsed.origins[name] == origin
        }
    return {
        "flags": flags,
        "ignored": parsed.ignored,
        "architecture": asdict(architecture),
        "layout": {**asdict(layout), "world": layout.world},
    }


def as_text(content: dict[str, Any]) -> str:
    """`resolved` as YAML, in its order."""
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


def describe(parsed: Parsed) -> str:
    """Lines ``--flag = value   (origin)``, then a line for each accepted flag that changes nothing."""
    given = {name: value for name, value in values(parsed.config).items() if parsed.origins[name] != "default"}
    lines = [
        f"  --{name.replace('_', '-')} = {_text(value)}   ({parsed.origins[name]})" for name, value in given.items()
    ]
    return "\n".join(["configuration (all else is default):", *lines, *parsed.ignored])


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
