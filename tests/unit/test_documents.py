"""What the documents name is there: files of the package and of the tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
_FILE = re.compile(r"`([\w./-]+\.(?:py|sh|toml|md))[`:]")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    """From the root of the repository, or inside the package."""
    named = _FILE.findall(path.read_text(encoding="utf-8"))
    scripts = [*(ROOT / "examples").rglob("*.sh")]
    missing = [
        name
        for name in named
        if not (ROOT / name).exists()
        and not (ROOT / "mindspeed_ift" / name).exists()
        and name not in [script.name for script in scripts]
    ]
    assert not missing


def test_the_architecture_names_every_package() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    packages = [path.parent.name for path in (ROOT / "mindspeed_ift").glob("*/__init__.py")]
    assert len(packages) > 7 and not [name for name in packages if not re.search(rf"^(.*\| )?{name}\b", text, re.M)]
