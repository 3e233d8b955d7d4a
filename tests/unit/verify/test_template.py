"""The certificate of a template: what differs, of which kind, and who asks for it later."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mindspeed_ift.cli.command import run
from mindspeed_ift.cli.main import main
from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data import template_comparison as comparison
from mindspeed_ift.data.certify import Report, certify
from mindspeed_ift.data.conversation import Conversation, DropRecord, Message, Role
from mindspeed_ift.data.encode import EncodeOptions
from mindspeed_ift.data.indexed import read_manifest
from mindspeed_ift.data.preprocess import preprocess
from mindspeed_ift.data.template_certificate import (
    KEY,
    Certificate,
    add_to_dataset,
    chat_template_sha256,
    check_certificate,
)
from mindspeed_ift.data.template_choice import definition, get_template, make_encoder
from mindspeed_ift.data.tokenizer import load_tokenizer
from mindspeed_ift.verify.template import serving_notice
from tests.tiny_tokenizer import make_tiny_tokenizer

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}" + PLAIN
TOOLS = '[{"name": "look", "parameters": {"type": "object", "properties": {}}}]'
RECORDS = [{"instruction": "one", "output": "two"}, {"instruction": "three", "output": None}]


def talk(*texts: str, **more: str) -> Conversation:
    return Conversation(tuple(map(Message, [Role.USER, Role.ASSISTANT] * len(texts), texts)), **more)


def folder(path: Path, template: str | None = None) -> Path:
    """A tokenizer with this chat template; Qwen3's own for None."""
    make_tiny_tokenizer(path)
    if template is not None:
        file = path / "tokenizer_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**config, "chat_template": template}), encoding="utf-8")
    return path


def report(path: Path, name: str, *conversations: Conversation | DropRecord, **options: Any) -> Report:
    tokenizer = load_tokenizer(path)
    encoder = make_encoder(get_template(name), tokenizer, EncodeOptions(**options))
    return certify(encoder, tokenizer, [(f"record {n}", one) for n, one in enumerate(conversations)], examples=3)


@pytest.mark.parametrize(
    ("thinking", "answer", "serve_with"),
    [
        ("none", "two", {"enable_thinking": False}),
        ("false", "<think>\nhm\n</think>\n\ntwo", {"enable_thinking": False}),
        ("true", "two", {}),
        ("true", "<think>\nhm\n</think>\n\ntwo", {}),
    ],
)
def test_qwen3_sees_what_it_is_trained_on(thinking: str, answer: str, serve_with: dict, tmp_path: Path) -> None:
    found = report(folder(tmp_path), "qwen3", talk("one", answer), talk("a", "b", system="s"), enable_thinking=thinking)
    assert found.certificate.holds, found.certificate
    assert found.certificate.serve_with == serve_with and found.modes[0].serve_with == serve_with


@pytest.mark.parametrize(
    ("template", "name", "conversation", "kind"),
    [
        (PLAIN, "default", talk("one", "two"), comparison.SYSTEM),
        (PLAIN, "qwen3_nothink", talk("one", "two", tools=TOOLS), comparison.TOOLS),
        (REFUSING, "qwen3_nothink", talk("one", "two", system="s"), comparison.REFUSED),
        (None, "qwen3", talk("one", "<think>\nhm\n</think>\n\ntwo", "three", "four"), comparison.THOUGHTS),
        (PLAIN.replace("{{ m.content }}", "{{ m.content }}."), "qwen3_nothink", talk("one", "two"), comparison.PROMPT),
        (
            PLAIN.replace("{{ m.content }}", "{{ m.content }}{{ '.' if m.role == 'assistant' }}"),
            "qwen3_nothink",
            talk("one", "two", "three", "four"),
            comparison.HISTORY,
        ),
        (
            PLAIN.replace("{{ m.content }}", "{{ m.content }}{{ '.' if m.role == 'assistant' }}"),
            "qwen3_nothink",
            talk("one", "two"),
            comparison.ANSWER,
        ),
        (
            PLAIN.replace("{% if add", "{% if not add_generation_prompt %}bye{% endif %}{% if add"),
            "qwen3_nothink",
            talk("one", "two"),
            comparison.ENDING,
        ),
    ],
)
def test_kinds_of_difference(
    template: str | None, name: str, conversation: Conversation, kind: str, tmp_path: Path
) -> None:
    found = report(folder(tmp_path, template), name, conversation, conversation)
    assert found.certificate.differ == {kind: 2} and not found.certificate.holds
    ((origin, difference),) = found.modes[0].examples
    assert origin == "record 0" and difference.kind == kind


def test_same_text_in_other_tokens(tmp_path: Path) -> None:
    """A piece of a template is encoded by itself, the chat template's text at once."""
    chat = "{% for m in messages %}{{ 'the' if m.role == 'user' }}{{ m.content }}<|im_end|>{% endfor %}"
    row = {"name": "mine", "format_user": ["th", "e{{content}}<|im_end|>"], "format_assistant": "{{content}}<|im_end|>"}
    tokenizer = load_tokenizer(folder(tmp_path, chat))
    encoder = make_encoder(get_template("mine", row, "mine.json"), tokenizer, EncodeOptions())
    found = certify(encoder, tokenizer, [("", talk("one", "two"))])
    assert found.certificate.differ == {comparison.TOKENS: 1}


def test_a_default_system_prompt_can_be_sent(tmp_path: Path) -> None:
    found = report(folder(tmp_path, PLAIN), "qwen", talk("one", "two"), talk("one", "two", system="s"))
    assert found.certificate.holds and found.certificate.serve_with == {"system": "You are a helpful assistant."}


@pytest.mark.parametrize("thinking", ["none", "true", "false"])
def test_the_own_template_of_a_tokenizer_is_equal(thinking: str, tmp_path: Path) -> None:
    talks = talk("one", "<think>\nhm\n</think>\n\ntwo", tools=TOOLS), talk("one", "two", "three", "four", system="s")
    for template in (None, PLAIN):
        path = folder(tmp_path / str(template is None), template)
        found = report(path, "hf", *talks, enable_thinking=thinking, mask_history=True)
        assert found.certificate.holds, found.certificate


def test_only_the_last_prompt_counts_where_only_it_is_learnt(tmp_path: Path) -> None:
    conversation = talk("one", "<think>\nhm\n</think>\n\ntwo", "three", "four")
    path = folder(tmp_path)
    assert not report(path, "qwen3", conversation).certificate.holds
    for name in ("qwen3", "hf"):
        assert report(path, name, conversation, mask_history=True, enable_thinking="false").certificate.holds


def test_white_space_behind_the_end_does_not_count(tmp_path: Path) -> None:
    path = folder(tmp_path, PLAIN)
    assert report(path, "qwen", talk("one", "two", system="s")).certificate.holds
    assert report(path, "chatml", talk("one", "two", "three", "four")).certificate.holds


def test_prompts_may_be_equal_where_answers_are_not(tmp_path: Path) -> None:
    """Qwen3's template puts an empty thought in front of an answer that is there, but not where it shall come."""
    found = report(folder(tmp_path), "qwen", talk("one", "two"))
    assert found.certificate.as_dict()["verdict"] == "prompts equal" and found.certificate.differ == {"thoughts": 1}
    assert found.certificate.serve_with == {"system": "You are a helpful assistant."}


def test_differences_are_aligned(tmp_path: Path) -> None:
    path = folder(tmp_path, PLAIN.replace("{{ m.content }}", "{{ m.content }}."))
    _, difference = report(path, "qwen3_nothink", talk("one", "two")).modes[0].examples[0]
    dot = load_tokenizer(path).encode(".")
    rows = difference.aligned()
    assert ([], dot) in rows and all(trained == served for trained, served in rows if trained and served)


def test_records_that_are_no_samples(tmp_path: Path) -> None:
    path = folder(tmp_path, PLAIN)
    found = report(path, "qwen3_nothink", talk("one", "two"), DropRecord("no messages"))
    assert found.certificate.left_out == {"no messages": 1} and found.certificate.holds
    with pytest.raises(UserError, match="no record could be compared: 1 no messages"):
        report(path, "qwen", DropRecord("no messages"))
    (path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}', encoding="utf-8")
    with pytest.raises(UserError, match="has no chat template"):
        report(path, "qwen", talk("one", "two"))


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        run(main, ["verify-template", *words])
    return stop.value.code or 0


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.json").write_text(json.dumps(RECORDS), encoding="utf-8")
    tokenizer, output = folder(tmp_path / "tokenizer"), tmp_path / "certificate.json"
    common = ["--input", str(tmp_path / "in.json"), "--output", str(output)]
    assert command("--tokenizer", str(tokenizer), "--prompt-type", "qwen3", *common) == 0
    said = capsys.readouterr().out
    assert "equal: served with enable_thinking=False" in said and "no sample: 'output' is missing or null" in said
    assert json.loads(output.read_text(encoding="utf-8"))["verdict"] == "equal"
    assert command("--tokenizer-name-or-path", str(tokenizer), "--prompt-type", "default", *common) == 1
    said = capsys.readouterr().out
    assert "in.json:1: prompt 1: system prompt" in said and "trained" in said and "served" in said
    assert "1 of 1 records" in said and json.loads(output.read_text(encoding="utf-8"))["verdict"] == "differs"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokenizer", "x"], "--input is missing"),
        (["--input", "x"], "--tokenizer is missing"),
        (["--input", "x", "--tokenizer", "x", "--tokenizer-name-or-path", "y"], "name two folders"),
        (["--input", "x", "--tokenizer", "x", "--max-samples", "0"], "--max-samples 0 is too small"),
        (["--input", "x", "--tokenizer", "x", "--prompt-type", "qwn"], "did you mean qwen"),
        (["--input", "x", "--tokenizer", "x", "--data-path", "none"], "--data-path none has no manifest"),
        (["--input", "TEXT", "--tokenizer", "TOKENIZER"], "holds plain text"),
        (["--input", "TEXT", "--tokenizer", "TOKENIZER", "--output", "TOKENIZER"], "is a folder; name a file in it"),
        (["--input", "TEXT", "--tokenizer", "TOKENIZER", "--output", "FILE"], "cannot be written (File exists)"),
        (["--input", "TEXT", "--tokenizer", "TOKENIZER", "--output", "TEXT"], "is there and is no certificate"),
    ],
)
def test_mistakes(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.json").write_text('[{"text": "x"}]', encoding="utf-8")
    places = {"TEXT": str(tmp_path / "in.json"), "TOKENIZER": str(make_tiny_tokenizer(tmp_path / "tokenizer"))}
    places["FILE"] = str(tmp_path / "in.json" / "certificate.json")
    assert command(*(places.get(word, word) for word in words)) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_the_certificate_of_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps(RECORDS), encoding="utf-8")
    tokenizer, prefix = folder(tmp_path / "tokenizer"), str(tmp_path / "data")
    common = {"input": str(tmp_path / "in.json"), "output_prefix": prefix, "tokenizer_name_or_path": str(tokenizer)}
    preprocess(PreprocessConfig(**common, prompt_type="qwen3", max_drop_fraction=1.0), report=print)
    words = ["--input", common["input"], "--tokenizer", str(tokenizer), "--data-path", prefix]
    assert command(*words, "--prompt-type", "qwen3") == 0
    manifest = read_manifest(prefix) or {}
    assert manifest[KEY]["verdict"] == "equal" and manifest["files"]
    assert check_certificate(manifest[KEY], manifest["template_sha256"], prefix) is None
    assert command(*words, "--prompt-type", "qwen") == 2, "made with another template"
    assert command(*words, "--prompt-type", "qwen3", "--enable-thinking", "true") == 2
    assert read_manifest(prefix) == manifest


def certificate(**changes: Any) -> Certificate:
    about = {"prompt_type": "qwen", "template_sha256": "a" * 64, "chat_template_sha256": "c" * 64}
    given = {**about, "records": 2, "equal": 1, "prompts_equal": 1, "differ": {"x": 1}, "left_out": {}, **changes}
    return Certificate(enable_thinking="none", tokenizer_sha256="b" * 64, serve_with={}, **given)


def test_a_certificate_is_held_to_its_template(tmp_path: Path) -> None:
    content = certificate().as_dict()
    assert check_certificate(None, None, "d") is None
    line = check_certificate(content, "a" * 64, "data/x") or ""
    assert "writes 1 of 2 records otherwise than --prompt-type qwen" in line
    for recorded, sha in (({**content, "equal": 2}, "a" * 64), (content, "b" * 64)):
        with pytest.raises(UserError, match="of data/x is not about its template"):
            check_certificate(recorded, sha, "data/x")
    with pytest.raises(UserError, match="has no manifest"):
        add_to_dataset(certificate(), str(tmp_path / "none"))


def test_an_exported_model_is_told_how_to_be_asked(tmp_path: Path) -> None:
    path = folder(tmp_path / "own")
    assert serving_notice({}, path) is None
    assert serving_notice({"prompt_type": "qwen3", "enable_thinking": "true"}, path) is None
    facts = {"prompt_type": "qwen3", "template_sha256": definition(get_template("qwen3"))}
    differs = certificate(prompt_type="qwen3", template_sha256=facts["template_sha256"])
    mine = load_tokenizer(path)
    told = replace(
        differs, tokenizer_sha256=mine.fingerprint, chat_template_sha256=chat_template_sha256(mine.chat_template) or ""
    )
    assert "writes 1 of 2 records otherwise" in (serving_notice({**facts, KEY: told.as_dict()}, path) or "")
    changed = replace(told, chat_template_sha256="0", equal=2, prompts_equal=2)
    assert "verify-template compares it" in (serving_notice({**facts, KEY: changed.as_dict()}, path) or "")
    notice = serving_notice({"prompt_type": "default", "template_row": None}, path) or ""
    assert "(--prompt-type default; first difference: system prompt" in notice and "as generate does" in notice
    (path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}', encoding="utf-8")
    assert "has no chat template" in (serving_notice({"prompt_type": "qwen"}, path) or "")
