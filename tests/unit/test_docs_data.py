"""The commands of docs/data.md run, in their order, on the records that the page shows; its twin has the same."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mindspeed_ift.cli.main import main
from tests.tiny_tokenizer import make_tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "docs" / "data.md", ROOT / "docs" / "data.zh.md")
_BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MAKES_THE_TOKENIZER = "make-tokenizer"
"""Needs the real vocabulary; a tiny one lies at the same place here."""


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(language, file name, content) of each block."""
    return [match.groups() for match in _BLOCK.finditer(page.read_text(encoding="utf-8"))]


def commands(content: str) -> Iterator[list[str]]:
    """The words of each command of a block, without its remark."""
    for line in content.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "mindspeed-ift", line
        yield words[1:]


def test_the_commands_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_tiny_tokenizer("tokenizer")
    shutil.copytree(ROOT / "examples" / "data", "examples/data")
    said = ""
    for language, name, content in blocks(PAGES[0]):
        if language == "jsonl":
            Path(name).write_text(content, encoding="utf-8")
        elif language == "bash":
            for words in commands(content):
                if words[0] != _MAKES_THE_TOKENIZER:
                    assert main(words) == 0, words
            said = capsys.readouterr().out
        elif language == "python":
            result = subprocess.run([sys.executable, "-c", content], capture_output=True, text=True, check=True)
            assert "longer than the length asked for" in result.stdout
        elif language == "text":
            assert content in said, "what the page shows below a command"
    assert Path("demo.html").is_file()


def test_the_twin_has_the_same_blocks() -> None:
    """Word for word, but for remarks."""
    english, chinese = (
        [(language, name, re.sub(r"\s+#.*", "", content)) for language, name, content in blocks(page)] for page in PAGES
    )
    assert english == chinese and len(english) > 10


@pytest.mark.parametrize("page", PAGES, ids=["en", "zh"])
def test_a_page_is_short_and_its_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links and not [link for link in links if not (page.parent / link).is_file()]
