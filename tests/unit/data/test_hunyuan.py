"""Hunyuan's own tokens say what is learnt."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.tokenizer import load_tokenizer
from tests.preparing import column, prepared

HUNYUAN = (
    "{% for message in messages %}{% if loop.index0 == 0 %}{{ '<|start|>' + message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ message['content'] + '<|extra_0|>' }}"
    "{% else %}{{ message['content'] + '<|eos|>' }}{% endif %}{% endfor %}"
)
"""As Hunyuan's: the first message is taken for the system's, whoever speaks."""


def test_answers_between_the_marks_of_hunyuan(config: PreprocessConfig, tokenizer: Path, tmp_path: Path) -> None:
    def talk(*said: tuple[str, str | None]) -> dict[str, Any]:
        return {"conversations": [{"from": speaker, "value": text} for speaker, text in said]}

    records = [
        talk(("system", "be kind"), ("human", "q"), ("gpt", "one two"), ("human", "r"), ("gpt", "three")),
        talk(("human", "q"), ("gpt", "")),
        talk(("human", "q"), ("gpt", None)),
        talk(("human", "q<|extra_0|>r<|eos|>"), ("gpt", "a")),
    ]
    with pytest.raises(UserError, match="tokens of Hunyuan's tokenizer that .* lacks; give that tokenizer, or"):
        prepared(config, records, handler_name="HunyuanInstructionHandler")
    folder = tmp_path / "hunyuan"
    shutil.copytree(tokenizer, folder)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(["<|extra_0|>", "<|eos|>", "<|start|>"])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(HUNYUAN)
    summary = prepared(config, records, handler_name="HunyuanInstructionHandler", tokenizer_name_or_path=str(folder))
    words = load_tokenizer(folder)
    spans = [
        [
            ("<|start|>be kindq", False),
            ("<|extra_0|>one two<|eos|>", True),
            ("r", False),
            ("<|extra_0|>three<|eos|>", True),
        ],
        [("<|start|>q", False), ("<|extra_0|><|eos|>", True)],
    ]
    for row, parts in enumerate(spans):
        ids = words.encode("".join(text for text, _ in parts))
        labels = [token if learnt else -100 for text, learnt in parts for token in words.encode(text)]
        assert column(config, "input_ids")[row].tolist() == ids and column(config, "labels")[row].tolist() == labels
    assert {name: tally.count for name, tally in summary.ledger.dropped.items()} == {
        "a message has no text": 1,
        "its answers are not those between <|extra_0|> and <|eos|> of the chat template": 1,
    }
    # A client that sends no message of the system is asked otherwise by this chat template.
    assert summary.manifest["template_certificate"]["equal"] == 1
