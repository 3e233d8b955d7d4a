"""The page and the lines of a terminal: all text is there, none of it is obeyed; in a browser too where there is one."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.preprocess import preprocess
from mindspeed_ift.data.show.opening import ShownDataset
from mindspeed_ift.data.show.page import write_page
from mindspeed_ift.data.show.terminal import lines, visible
from tests.tiny_tokenizer import make_tiny_tokenizer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BROWSER_IS_PROMISED = os.environ.get("CI_BROWSER") == "1"
"""By .ci/run, which has installed one: its absence is a failure then."""
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
ATTACKS = [
    "<script>document.title = 'owned'</script>",
    "</div></details></body><img src=x onerror=\"document.title='owned'\">",
    "'\" onmouseover=alert(1) & &lt;b&gt; {{ 7 * 7 }} {% raw %}",
    "\x1b[31mred\x1b[0m \x00\x07 \u202egnirts",
]
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Tags, attributes and text of a page; a tag that closes another one fails."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShownDataset:
    folder = tmp_path_factory.mktemp("shown")
    attacks = [{"instruction": attack, "output": attack} for attack in ATTACKS]
    others = [{"instruction": f"question {number}", "output": "answer " * number} for number in range(1, 40)]
    records = [
        *attacks,
        *others,
        {"instruction": "none", "output": None},
        {"instruction": "q", "output": "one " * 1000},
    ]
    (folder / "<b>in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = PreprocessConfig(
        input=str(folder / "<b>in.jsonl"),
        output_prefix=str(folder / "<i>data"),
        tokenizer_name_or_path=str(make_tiny_tokenizer(folder / "tokenizer")),
        prompt_type="qwen3",
        pack=True,
        neat_pack=True,
        seq_length=2400,
    )
    preprocess(config, report=lambda line: None)
    return ShownDataset(config.output_prefix)


@pytest.fixture(scope="module")
def page(dataset: ShownDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(dataset, range(len(dataset)), path)
    return path


def test_the_page_is_whole_and_loads_nothing(page: Path) -> None:
    found = Reader(page.read_text(encoding="utf-8"))
    assert set(found.tags) <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "tr", "th", "td"),
        *("figure", "figcaption", "svg", "rect", "div", "span", "details", "summary", "b", "i"),
    }
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("src", "href", "style")]
    assert "http://" not in page.read_text() and "https://" not in page.read_text() and "url(" not in page.read_text()
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in found.attributes


def test_the_text_of_the_records_is_shown_and_not_obeyed(page: Path) -> None:
    found = Reader(page.read_text(encoding="utf-8"))
    for attack in ATTACKS:
        assert found.text.count(visible(attack)) >= 2
    assert "script" not in found.tags and "img" not in found.tags and "<i>data" in found.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", found.text)


def test_the_page_tells_the_figures(page: Path, dataset: ShownDataset) -> None:
    text = Reader(page.read_text(encoding="utf-8")).text
    assert dataset.manifest is not None
    assert "45 records were read, 44 samples made of them." in text and "'output' is missing or null" in text
    assert f"learnt{dataset.manifest['learnt_tokens']:,} (" in text and "a rare length" in text
    assert f"input{dataset.manifest['input'][0]['file']}\n" in text
    for heading in ("Lengths", "Fill of the rows", "What is learnt", "The strangest samples", "The longest samples"):
        assert heading in text


def test_a_long_sample_is_shown_in_part(page: Path, dataset: ShownDataset) -> None:
    text = Reader(page.read_text(encoding="utf-8")).text
    longest = max(len(part.input_ids) for number in range(len(dataset)) for part in dataset[number].parts())
    assert longest > 1200 and f"({longest - 1200:,} tokens left out)" in text


def test_no_manifest_is_said(dataset: ShownDataset, tmp_path: Path) -> None:
    without = ShownDataset(dataset.prefix)
    without.manifest = None
    write_page(without, [0], tmp_path / "page.html")
    assert "it is not known what was cut or dropped" in (tmp_path / "page.html").read_text()


def test_a_page_that_cannot_be_written_leaves_nothing(dataset: ShownDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--html .*none/page.html cannot be written .No such file or directory."):
        write_page(dataset, [0], tmp_path / "none" / "page.html")
    assert not list(tmp_path.iterdir())


def in_a_browser(profile: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A browser that asks nothing of the network, with a new profile."""
    profile.mkdir()
    command = [str(CHROMIUM), *QUIET, f"--user-data-dir={profile}", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)


@pytest.mark.skipif(CHROMIUM is None and not BROWSER_IS_PROMISED, reason="no chromium on PATH")
def test_the_page_in_a_browser(page: Path, tmp_path: Path) -> None:
    """Its own parser finds the same page; no script of a record has run, nothing was blocked or asked for."""
    assert CHROMIUM is not None, "CI_BROWSER=1 says that there is one, and there is no chromium on PATH"
    url = page.as_uri()
    dumped = in_a_browser(tmp_path / "first", "--enable-logging=stderr", "--dump-dom", url)
    found = Reader(dumped.stdout)
    assert "<title>&lt;i&gt;data</title>" in dumped.stdout, "a script has run"
    assert "CONSOLE" not in dumped.stderr, "the page's own rules forbade something"
    expected = Reader(page.read_text(encoding="utf-8"))
    assert found.tags.count("details") == expected.tags.count("details") > 10
    assert found.tags.count("rect") == expected.tags.count("rect") > 3
    assert "".join(found.text.split()) == "".join(expected.text.split())
    shot = tmp_path / "page.png"
    in_a_browser(tmp_path / "second", f"--screenshot={shot}", "--window-size=1000,2000", url)
    assert shot.stat().st_size > 20_000, "an empty page"


@pytest.mark.parametrize("coloured", [False, True])
def test_lines_of_a_terminal(dataset: ShownDataset, coloured: bool) -> None:
    said = io.StringIO()
    console = Console(file=said, force_terminal=coloured, color_system="standard" if coloured else None, soft_wrap=True)
    for number in range(len(dataset)):
        for line in lines(dataset, dataset[number], coloured):
            console.print(line)
    text = said.getvalue()
    assert "document 0:" in text and "-- sample 1:" in text and "pads]" in text
    if coloured:
        learnt = "".join(re.findall(r"\x1b\[(?:4;)?32m([^\x1b]*)", text))
        assert "\x1b[31m" not in text, "colours of a record"
    else:
        assert "\x1b" not in text and "\x00" not in text and "\u202e" not in text
        learnt = "".join(re.findall("⟦(.*?)⟧", text, re.DOTALL))
    assert all(visible(attack) in learnt for attack in ATTACKS) and "question 1" not in learnt
