"""What the command line came to: every value and where it came from, the model, the layout."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from mindspeed_ift.config.architecture import Architecture
from mindspeed_ift.config.flags import Parsed, values
from mindspeed_ift.config.layout import Layout


def flags_by_origin(parsed: Parsed) -> dict[str, dict[str, Any]]:
    """Origin (flag, the name of a ``--config`` file, default) -> flag without dashes -> plain value."""
    flat = values(parsed.config)
    order = sorted(set(parsed.origins.values()), key=lambda origin: (origin == "default", origin != "flag", origin))
    return {
        origin: {name.replace("_", "-"): _plain(flat[name]) for name in flat if parsed.origins[name] == origin}
        for origin in order
    }


def settings(config: Any, architecture: Architecture, layout: Layout) -> dict[str, Any]:
    """What a run is, in plain values: ``flags``, ``architecture``, ``layout``; without where each came from."""
    return {
        "flags": {name.replace("_", "-"): _plain(value) for name, value in values(config).items()},
        "architecture": asdict(architecture),
        "layout": {**asdict(layout), "world": layout.world},
    }


def as_text(content: dict[str, Any]) -> str:
    """`settings` as YAML, in their order."""
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


def describe(parsed: Parsed) -> str:
    """Lines ``--flag = value   (origin)``, then a line for each accepted flag that changes nothing."""
    lines = [
        f"  --{name} = {' '.join(map(str, value)) if isinstance(value, list) else value}   ({origin})"
        for origin, given in flags_by_origin(parsed).items()
        if origin != "default"
        for name, value in given.items()
    ]
    return "\n".join(["configuration (all else is default):", *lines, *parsed.ignored])


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
