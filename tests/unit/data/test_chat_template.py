"""The chat template of a tokenizer folder: what transformers' `apply_chat_template` writes, without transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from packaging.version import Version

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.tokenizer import load_tokenizer
from tests.tiny_tokenizer import make_tiny_tokenizer

PLAIN = (
    "{{ bos_token }}{{ unk_token }}{% for m in messages %}\n  {% if m.role == 'tool' %}\n    {% continue %}\n  {% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{{ tools | tojson }}{{ documents is none }}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{{ strftime_now('%Y') }}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% if loop.last %} 世界!{% endif %}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
)
TALK = [
    {"role": "system", "content": "be <kind> & 好"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {"at": "海 <1>"}}}]},
    {"role": "tool", "content": "wet"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\ntwo"},
    {"role": "user", "content": "three"},
]
TOOLS = [{"type": "function", "function": {"name": "look", "description": "看 <b>", "parameters": {"type": "object"}}}]


def folder(path: Path, **config: Any) -> Path:
    """A tiny tokenizer with Qwen3's chat template, or what ``config`` says."""
    file = make_tiny_tokenizer(path) / "tokenizer_config.json"
    own = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**own, **config}), encoding="utf-8")
    return path


def both(path: Path, messages: list[dict[str, Any]], tools: Any, prompt: bool, **options: Any) -> tuple[str, str]:
    """What we write and what transformers does."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    template = load_tokenizer(path).chat_template
    assert template is not None
    return template.render(messages, tools, prompt, **options)[0], theirs.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=prompt, **options
    )


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("config", [{}, {"chat_template": PLAIN, "bos_token": "<think>"}])
def test_as_transformers(config: dict[str, Any], tools: Any, tmp_path: Path) -> None:
    path = folder(tmp_path, **config)
    for prompt, options in ((False, {}), (True, {"enable_thinking": False}), (True, {"enable_thinking": True})):
        ours, theirs = both(path, TALK, tools, prompt, **options)
        assert ours == theirs and "three" in ours


def test_several_templates(tmp_path: Path) -> None:
    """By name in the configuration, or in files, which come first; one of them may be for tools."""
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    path = folder(tmp_path, chat_template=named)
    assert both(path, TALK, None, False) == ("plain", "plain") and both(path, TALK, TOOLS, False) == ("tools", "tools")
    (path / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert both(path, TALK, TOOLS, False) == ("file", "file")
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "tool_use.jinja").write_text("tools of a file", encoding="utf-8")
    ours, theirs = both(path, TALK, TOOLS, False)
    assert ours == "tools of a file"
    if Version(metadata.version("transformers")) >= Version("5"):  # older ones know no such folder
        assert theirs == ours
    assert both(path, TALK, None, False) == ("file", "file")


def test_marks_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = folder(tmp_path, chat_template=MARKED)
    messages = [{"role": role, "content": f"{role} 你好"} for role in ("user", "assistant") * 2]
    theirs = AutoTokenizer.from_pretrained(str(path), local_files_only=True).apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    tokenizer = load_tokenizer(path)
    assert tokenizer.chat_template is not None
    text, spans = tokenizer.chat_template.render(messages)
    assert [text[start:end] for start, end in spans] == ["assistant 你好", "assistant 你好 世界!"]
    ids, inside = tokenizer.encode_spans(text, spans)
    assert ids == theirs["input_ids"] and inside == list(map(bool, theirs["assistant_masks"]))


def test_what_cannot_be_used(tmp_path: Path) -> None:
    template = load_tokenizer(folder(tmp_path, chat_template="{{ raise_exception('no') }}")).chat_template
    with pytest.raises(TemplateError, match="no"):
        template.render(TALK)
    template = load_tokenizer(folder(tmp_path, chat_template="a\n{% if %}")).chat_template
    with pytest.raises(UserError, match=r"chat template of tokenizer .* cannot be read \(line 2: "):
        template.render(TALK)
    template = load_tokenizer(folder(tmp_path, chat_template=[{"name": "rag", "template": "x"}])).chat_template
    with pytest.raises(UserError, match="no chat template called default"):
        template.render(TALK)
    assert load_tokenizer(folder(tmp_path, chat_template="")).chat_template is None


def test_transformers_is_not_needed(tmp_path: Path) -> None:
    """It takes seconds to import, in each process."""
    program = (
        "import sys; from mindspeed_ift.data.tokenizer import load_tokenizer\n"
        f"print(load_tokenizer({str(folder(tmp_path))!r}).chat_template.render([{{'role': 'user', 'content': 'q'}}])[0])\n"
        "assert not {'transformers', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("<|im_start|>user\nq<|im_end|>"), done.stderr
