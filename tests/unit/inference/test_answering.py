"""What is said on the terminal, and what is remembered."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.encode import EncodeOptions
from mindspeed_ift.data.template_choice import find_row, get_template, make_encoder
from mindspeed_ift.data.tokenizer import load_tokenizer
from mindspeed_ift.inference import answering
from mindspeed_ift.inference.answering import Answering
from mindspeed_ift.inference.load import Loaded
from mindspeed_ift.inference.sampling import Sampling
from tests.tiny_tokenizer import make_tiny_tokenizer


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: ANN201
    """An `Answering` of a model that says "é!" and the number of its answer, and the prompts that it was given."""
    make_tiny_tokenizer(tmp_path / "tokenizer")
    encoder = make_encoder(
        get_template("qwen", find_row("qwen", None), ""), load_tokenizer(tmp_path / "tokenizer"), EncodeOptions()
    )
    prompts: list[str] = []

    def generate(_: Any, batch: list[list[int]], stops: list[int], sampling: Sampling, tell: Any) -> list[list[int]]:
        answers = []
        for ids in batch:
            prompts.append(encoder.tokenizer.decode(ids))
            answers.append(encoder.tokenizer.encode(f"é! {len(prompts)}"))
        for end in range(1, len(answers[0]) + 1):
            if tell is not None:
                tell(0, answers[0][:end])
        return answers

    monkeypatch.setattr(answering, "generate", generate)
    monkeypatch.setattr(answering, "Decoder", lambda *_: None)
    groups = SimpleNamespace(rank=0, gather=lambda value: [value, None])
    model = SimpleNamespace(architecture=SimpleNamespace(vocab_size=encoder.tokenizer.vocab_size))
    stand_ins: Any = (model, groups)
    return Answering(Loaded(*stand_ins, {}, "x"), encoder, Sampling(), "be kind"), prompts


def test_answers_in_batches_and_word_by_word_look_alike(asked, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: ANN001
    answers, prompts = asked
    questions = [{"prompt": "add"}, {"prompt": "subtract", "system": "be short"}]
    assert answers.answer(questions, 8, stream=False) == ["é! 1", "é! 2"]
    assert capsys.readouterr().out == "> add\né! 1\n\n> subtract\né! 2\n\n"
    assert answers.answer(questions, 1, stream=True) == ["é! 3", "é! 4"]
    assert capsys.readouterr().out == "> add\né! 3\n\n> subtract\né! 4\n\n"
    assert "be kind" in prompts[0] and "be short" in prompts[1] and "be kind" not in prompts[1]


def test_no_half_of_a_character_is_written(asked, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    answers, _ = asked
    written: list[str] = []
    monkeypatch.setattr(answers, "_say", written.append)
    answers.answer([{"prompt": "add"}], 1, stream=True)
    assert "".join(written) == "> add\né! 1\n\n" and not any("\ufffd" in text for text in written)
    assert len(written) > 4  # piece by piece


def test_a_talk_remembers_until_it_is_told_to_forget(asked, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: ANN001
    answers, prompts = asked
    answers.chat(["add\n", "\n", "and now\n", "/new\n", "hello\n"])
    assert [("add" in text, "é! 1" in text, "and now" in text) for text in prompts] == [
        (True, False, False),
        (True, True, True),
        (False, False, False),
    ]
    assert "é! 2\n> " in capsys.readouterr().out


def test_a_foreign_tokenizer_is_refused_before_the_first_answer(asked) -> None:  # noqa: ANN001
    answers, prompts = asked
    answers.loaded.model.architecture.vocab_size = 5
    with pytest.raises(UserError, match="but the model of x has the ids 0 to 4; give --tokenizer-name-or-path"):
        answers.answer([{"prompt": "add"}], 8, stream=False)
    assert not prompts
