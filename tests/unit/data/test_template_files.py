"""A user's own templates: what a file may say, what it means, and how each mistake is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.conversation import Conversation, Message, Role
from mindspeed_ift.data.encode import EncodeOptions, Encoder
from mindspeed_ift.data.template_choice import find_row, get_template
from mindspeed_ift.data.template_files import read_rows, template_of
from mindspeed_ift.data.template_fingerprint import fingerprint
from mindspeed_ift.data.template_table import TEMPLATES
from mindspeed_ift.data.templates import NamedToken, Rules, Template, Token
from mindspeed_ift.data.tokenizer import load_tokenizer
from tests.tiny_tokenizer import make_tiny_tokenizer

TALK = Conversation(tuple(map(Message, [Role.USER, Role.ASSISTANT] * 2, "abcd")), system="s")
SPECIAL = {Token.END: "<END>", Token.BEGIN: "<BEGIN>"}

# As MindSpeed-LLM writes its rows.
CHATML = {
    "name": "chatml",
    "format_user": {"slots": ["<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n"]},
    "format_system": {"slots": ["<|im_start|>system\n{{content}}<|im_end|>\n"]},
    "format_observation": {"slots": ["<|im_start|>tool\n{{content}}<|im_end|>\n<|im_start|>assistant\n"]},
    "format_separator": {"slots": ["\n"]},
    "stop_words": ["<|im_end|>", "<|im_start|>"],
    "replace_eos": True,
}
QWEN3 = {
    "name": "qwen3",
    "format_user": {"slots": ["<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n"]},
    "format_assistant": {"slots": ["{{content}}<|im_end|>\n"]},
    "format_system": {"slots": ["<|im_start|>system\n{{content}}<|im_end|>\n"]},
    "format_function": {"slots": ["{{content}}<|im_end|>\n"], "tool_format": "qwen"},
    "format_observation": {
        "slots": ["<|im_start|>user\n<tool_response>\n{{content}}\n</tool_response><|im_end|>\n<|im_start|>assistant\n"]
    },
    "format_tools": {"tool_format": "qwen"},
    "stop_words": ["<|im_end|>"],
    "replace_eos": True,
    "template_class": "ReasoningTemplate",
}
LLAMA2 = {
    "name": "llama2",
    "format_user": {"slots": [["bos_token"], "[INST] {{content}} [/INST]"]},
    "format_system": {"slots": ["<<SYS>>\n{{content}}\n<</SYS>>\n\n"]},
    "template_class": "Llama2Template",
}
ROUNDS = {
    "name": "rounds",
    "format_user": {"slots": ["[Round {{idx}}]\n{{content}}\n"]},
    "format_prefix": {"slots": [{"token": "[gMASK]"}]},
    "efficient_eos": True,
    "force_system": True,
}


def written(template: Template, talk: Conversation = TALK) -> str:
    pieces = [piece for turn in template.render(talk) for piece in (*turn.source, "|", *turn.target, "|")]
    return "".join(
        SPECIAL.get(piece) or (f"<{piece.text}>" if isinstance(piece, NamedToken) else "".join(piece))
        for piece in pieces
    )


def save(folder: Path, content: Any, name: str = "templates.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def load(path: Path, name: str) -> Template:
    return get_template(name, find_row(name, str(path)), str(path))


@pytest.mark.parametrize("row", [CHATML, QWEN3, LLAMA2], ids=lambda row: row["name"])
def test_rows_of_mindspeed_llm_are_the_built_in_ones(row: dict[str, Any], tmp_path: Path) -> None:
    path = save(tmp_path, [ROUNDS, row])
    assert fingerprint(load(path, row["name"])) == fingerprint(TEMPLATES[row["name"]])


def test_rounds_tokens_and_one_end(tmp_path: Path) -> None:
    template = load(save(tmp_path, [ROUNDS]), "rounds")
    assert written(template) == "<[gMASK]>s[Round 0]\na\n|b|[Round 1]\nc\n|d|"
    assert template.rules is Rules.LLAMA_FACTORY_0_8 and template.efficient_eos
    with pytest.raises(UserError, match=r"has no token \[gMASK\], which --prompt-type rounds writes"):
        Encoder(template, load_tokenizer(make_tiny_tokenizer(tmp_path / "tiny")), EncodeOptions()).encode([TALK])


def test_yaml_and_short_forms(tmp_path: Path) -> None:
    text = """
    mine:
      format_user: "<u>{{content}}<a>"
      format_assistant: ["{{content}}", [eos_token], "\\n"]
      default_system: [You are, " a pirate."]
    """
    template = load(save(tmp_path, text, "mine.yaml"), "mine")
    assert written(template, Conversation(TALK.messages)) == "You are a pirate.<u>a<a>|b<END>\n|<u>c<a>|d<END>\n|"


def test_the_later_class_overlooks_the_separator(tmp_path: Path) -> None:
    later = {
        **CHATML,
        "template_class": "LFDefaultTemplate",
        "format_assistant": {"slots": ["{{content}}<|im_end|>\n"]},
    }
    template = load(save(tmp_path, [later]), "chatml")
    assert template.separator == () and template.rules is Rules.LLAMA_FACTORY_0_9
    assert template.function == template.assistant, "as LLaMA-Factory, calls close like answers"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_usr": {}}, "field format_usr is not known"),
        ({"format_user": {"slots": ["no slot"]}}, r"format_user must have the slot \{\{content\}\} once"),
        ({"format_user": {"slots": ["{{content}}{{context}}"]}}, r"format_user: no slot \{\{context\}\} there"),
        ({"format_user": {"slots": ["{{content}}", 5]}}, "format_user: 5 is no text"),
        ({"format_user": {"slots": ["{{content}}", ["pad_token"]]}}, r"\[\"pad_token\"\] is no text"),
        ({"format_user": {"slot": []}}, 'format_user needs "slots"'),
        ({"format_prefix": {"slots": ["{{content}}"]}}, "there; known are: none"),
        ({"format_function": {"slots": ["{{name}}"]}}, "format_function must have the slot"),
        ({"format_tools": {"tool_format": "xml"}}, "format_tools: tool_format xml is not one of default, qwen"),
        ({"stop_words": "<|im_end|>"}, "stop_words must be a list of texts"),
        ({"stop_words": []}, "replace_eos needs stop_words"),
        ({"efficient_eos": "yes"}, "efficient_eos must be true or false"),
        ({"default_system": 3}, "default_system must be a text"),
        ({"thought_words": ["<t>"]}, "thought_words must be two texts"),
        ({"template_class": "DeepSeek4Template"}, "template_class DeepSeek4Template is not one of .*--prompt-type hf"),
    ],
)
def test_mistakes_of_a_row(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        template_of({**CHATML, **change}, "my.json")
    assert str(error.value).startswith("my.json: template chatml: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[{]", "is not JSON or YAML"),
        ("a.yaml", "- [", "is not JSON or YAML"),
        ("a.yaml", "text", "must hold a list of templates"),
        ("a.json", [], "must hold a list of templates"),
        ("a.json", [{"format_user": {}}], "template 1 is no mapping with a name"),
        ("a.json", ["x"], "template 1 is no mapping"),
        ("a.json", [CHATML, CHATML], "two templates are called chatml"),
    ],
)
def test_mistakes_of_a_file(name: str, content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_rows(save(tmp_path, content, name))
    assert "\n" not in str(error.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--prompt-type-path .* cannot be read"):
        read_rows(tmp_path / "none.json")
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe[")
    with pytest.raises(UserError, match="is not UTF-8"):
        read_rows(tmp_path / "bad.json")


def test_names(tmp_path: Path) -> None:
    path = str(save(tmp_path, [ROUNDS]))
    assert find_row("qwen", "") is None
    with pytest.raises(UserError, match="is no template of .*; did you mean rounds"):
        find_row("round", path)
    with pytest.raises(UserError, match="it is built in: leave --prompt-type-path out"):
        find_row("qwen", path)
