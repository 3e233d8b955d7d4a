"""The command on records and two models: figures, answers, the page."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from mindspeed_ift.cli.evaluate import main as evaluate
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.evaluation import EvaluateConfig
from mindspeed_ift.parallel import groups as process_groups
from tests.tiny_tokenizer import make_tiny_tokenizer
from tests.training_runs import make_hugging_face_model

RECORDS = [
    {"instruction": "add 3 and 6", "output": "It is 9."},
    {"instruction": "quickly", "output": "<b>No</b> & yes"},
    {"instruction": "", "output": ""},
    {"instruction": "add 1 and 1", "history": [["add 2 and 2", "It is 4."]], "output": "It is 2."},
]


@pytest.fixture(autouse=True)
def _leave_the_world():  # noqa: ANN202
    yield
    if torch.distributed.is_initialized():
        process_groups.parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


@pytest.fixture
def line(tmp_path: Path) -> list[str]:
    """A command line of a model against itself with other weights."""
    make_tiny_tokenizer(tmp_path / "tokenizer")
    make_hugging_face_model(tmp_path / "after", tied=True, vocab_size=400)
    make_hugging_face_model(tmp_path / "before", tied=True, vocab_size=400, layers=1)
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, RECORDS)), encoding="utf-8")
    words = ["--load", str(tmp_path / "after"), "--baseline", str(tmp_path / "before")]
    words += ["--input", str(tmp_path / "records.jsonl"), "--tokenizer-name-or-path", str(tmp_path / "tokenizer")]
    return [*words, "--prompt-type", "qwen3", "--max-new-tokens", "5"]


def test_before_and_after_side_by_side(tmp_path: Path, line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--output", str(tmp_path / "new/result.json"), "--html", str(tmp_path / "new/page.html")]
    assert evaluate([*line, *files, "--metrics", "exact_match", "chrf"]) == 0
    told = capsys.readouterr().out
    content = json.loads((tmp_path / "new/result.json").read_text(encoding="utf-8"))
    before, after = content["models"]
    assert (before["name"], after["name"]) == (str(tmp_path / "before"), str(tmp_path / "after"))
    assert content["records"] == len(content["items"]) and sum(content["left_out"].values()) + content["records"] == 4
    for model in content["models"]:
        assert model["perplexity"] == pytest.approx(math.exp(model["loss"])) and 0 <= model["chrf"] <= 100
    items = content["items"]
    assert items[0]["question"] == "add 3 and 6" and items[0]["reference"] == "It is 9."
    assert items[-1]["question"] == "add 1 and 1" and items[-1]["reference"] == "It is 2."
    better = sum(item["models"][1]["loss"] < item["models"][0]["loss"] for item in items)
    assert f"the loss of {better} of {len(items)} records is lower after" in told
    page = (tmp_path / "new/page.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;No&lt;/b&gt; &amp; yes" in page and "<b>No" not in page and "<script" not in page
    assert page.count("<tr>") == 2 + len(items) + len(before) - 1


def test_the_loss_alone_writes_no_answer(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate([*line[:2], *line[4:]]) == 0
    told = capsys.readouterr().out
    assert "perplexity" in told and "exact_match" not in told and "lower after" not in told


def test_against_fresh_weights(tmp_path: Path, line: list[str]) -> None:
    """A model that learnt nothing finds all tokens about as likely, and is another one than that of --load."""
    file = tmp_path / "result.json"
    assert evaluate([*line[:2], "--baseline", "fresh", *line[4:], "--output", str(file)]) == 0
    before, after = json.loads(file.read_text(encoding="utf-8"))["models"]
    assert before["name"] == "fresh weights" and before["loss"] == pytest.approx(math.log(400), rel=0.05)
    assert after["name"] == str(tmp_path / "after") and after["loss"] != before["loss"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (EvaluateConfig(), "--load is missing"),
        (EvaluateConfig(load=Path("x")), "--input is missing"),
        (EvaluateConfig(load=Path("x"), input=("a",), html=Path("p")), "--html shows written answers; give --metrics"),
        (EvaluateConfig(load=Path("x"), input=("a",), seq_length=0), "--seq-length 0 must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(config: EvaluateConfig, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        config.check()


def test_records_that_ask_nothing_are_refused(tmp_path: Path, line: list[str]) -> None:
    (tmp_path / "records.jsonl").write_text('{"text": "plain"}', encoding="utf-8")
    with pytest.raises(UserError, match="records.jsonl"):
        evaluate(line)
    (tmp_path / "records.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="records.jsonl"):
        evaluate(line)
