"""What the command line came to: every value that is not a default, and where it came from."""

from __future__ import annotations

from typing import Any

from mindspeed_ift.config.flags import Parsed, values


def describe(parsed: Parsed) -> str:
    """Lines ``--flag = value   (origin)``, then a line for each accepted flag that changes nothing."""
    given = {name: value for name, value in values(parsed.config).items() if parsed.origins[name] != "default"}
    lines = [
        f"  --{name.replace('_', '-')} = {_text(value)}   ({parsed.origins[name]})" for name, value in given.items()
    ]
    return "\n".join(["configuration (all else is default):", *lines, *parsed.ignored])


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
