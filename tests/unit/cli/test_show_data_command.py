"""The command line of show-data: the first word, the page, one line for an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mindspeed_ift.cli import main as mindspeed_ift
from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.show_data import main
from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.data.preprocess import preprocess
from tests.tiny_tokenizer import make_tiny_tokenizer


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("show")
    records = [{"instruction": f"question {number}", "output": "answer"} for number in range(8)]
    (folder / "in.json").write_text(json.dumps(records))
    tokenizer = make_tiny_tokenizer(folder / "tokenizer")
    config = PreprocessConfig(
        input=str(folder / "in.json"), output_prefix=str(folder / "data"), tokenizer_name_or_path=str(tokenizer)
    )
    preprocess(config, report=lambda line: None)
    return config.output_prefix


@pytest.mark.parametrize("words", [[], ["--count", "2"], ["--start", "7"], ["--documents", "1,3-4"]])
def test_documents_are_printed(prefix: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert mindspeed_ift.main(["show-data", prefix, *words]) == 0
    said = capsys.readouterr().out
    shown = [line.split(":")[0] for line in said.splitlines() if line.startswith("document")]
    numbers = {"": range(5), "--count": range(2), "--start": [7], "--documents": [1, 3, 4]}["".join(words[:1])]
    assert shown == [f"document {number}" for number in numbers]
    assert "⟦answer<|im_end|>⟧" in said and "\x1b" not in said


def test_the_page_is_written(prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["--data-path", prefix, "--html", str(page)]) == 0
    assert capsys.readouterr().out == f"8 documents, 8 samples -> {page}\n"
    assert page.read_text().startswith("<!DOCTYPE html>") and list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no dataset is named"),
        (["none"], "no dataset at none"),
        (["PREFIX", "--start", "8"], "--start: there is no document 8; the dataset has 0 to 7"),
        (["PREFIX", "--tokenizer-name-or-path", "none"], "no tokenizer folder none"),
        (["PREFIX", "--documents", "x"], "--documents: 'x' is no number"),
        (["PREFIX", "--html", "none/page.html"], "--html none/page.html is not a file in a folder that exists"),
        (["PREFIX", "more"], "unexpected word 'more'"),
        (["PREFIX", "--counts", "8"], "unknown flag --counts; did you mean --count?"),
    ],
)
def test_one_line_and_exit_code_2(
    prefix: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(main, [prefix if word == "PREFIX" else word for word in words])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and message in said and said.count("\n") == 1
