"""docs/devices.md names the flags, variables and switches that there are; ``REFRESH_FLAG_TABLE=1`` writes its flags."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from mindspeed_ift.config import accepted
from mindspeed_ift.devices import npu
from mindspeed_ift.devices.kernels import table

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs/devices.md", ROOT / "docs/devices.zh.md"]
_START, _END = "<!-- flags: written by tests/unit/test_devices_page.py -->\n", "<!-- end of flags -->"
_REASONS = (accepted._KERNEL, accepted._MEMORY, accepted._CONTEXT, accepted._DISPATCH)
"""What flags of kernels, memory and communication have in common; the others are not MindSpeed's."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_flags_that_change_nothing(page: Path) -> None:
    rows = ["| why | flags |", "|---|---|"]
    for reason in _REASONS:
        flags = [f"`{name}`" for name, (_, given, *_) in accepted.ACCEPTED.items() if given == reason]
        assert flags
        rows.append(f"| {reason} | {', '.join(flags)} |")
    expected = "\n".join(rows) + "\n"
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(_START)
    found, after = rest.split(_END)
    if os.environ.get("REFRESH_FLAG_TABLE"):
        page.write_text(before + _START + expected + _END + after, encoding="utf-8")
        found = expected
    assert found == expected, "run this test with REFRESH_FLAG_TABLE=1 and look at what changes"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_the_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name, value in npu.ENVIRONMENT.items():
        assert f"| `{name}` | `{value}` |" in text
    assert table.SWITCH in text and all(f"`{group}`" in text for group in table.GROUPS)
    known = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("tests/golden/flags.txt", "ci/smoke.py"))
    refused = {flag for flag in re.findall(r"--[a-z][a-z0-9-]+", text) if flag in accepted.REFUSED}
    assert refused == {"--swap-optimizer"}
    named = set(re.findall(r"`(--[a-z][a-z0-9-]+)`", text)) - refused - set(accepted.ACCEPTED)
    assert len(named) > 5 and not [flag for flag in named if not re.search(rf"{flag}\b", known)]
