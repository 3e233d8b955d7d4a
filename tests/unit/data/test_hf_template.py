"""The tokenizer's own chat template: the ids of its apply_chat_template, and the answers found in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.conversation import Conversation, DropRecord, Message, Role
from mindspeed_ift.data.encode import Encoded, EncodeOptions, Encoder, TemplateMismatch
from mindspeed_ift.data.hf_template import chat_messages
from mindspeed_ift.data.message_formats import OpenAIFormat
from mindspeed_ift.data.preprocess import preprocess
from mindspeed_ift.data.sample import IGNORED_LABEL
from mindspeed_ift.data.template_choice import get_template, make_encoder
from mindspeed_ift.data.tokenizer import Tokenizer, load_tokenizer
from tests.tiny_tokenizer import make_tiny_tokenizer

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}" + PLAIN
CALL = '{"name": "look", "arguments": {"at": "sea"}}'


def tokenizer_with(folder: Path, template: str | None) -> Tokenizer:
    """A tiny tokenizer with this chat template; its own is Qwen3's."""
    make_tiny_tokenizer(folder)
    if template is not None:
        file = folder / "tokenizer_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**config, "chat_template": template}), encoding="utf-8")
    return load_tokenizer(folder)


def apply_chat_template(folder: Path, messages: list[dict[str, Any]]) -> list[int]:
    """What transformers makes of messages."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True).apply_chat_template(
        messages, return_dict=True
    )["input_ids"]


def encoder(tokenizer: Tokenizer, **options: object) -> Encoder:
    return make_encoder(get_template("hf"), tokenizer, EncodeOptions(**options))


def talk(*texts: str, system: str = "") -> Conversation:
    roles = [Role.USER, Role.ASSISTANT] * len(texts)
    return Conversation(tuple(map(Message, roles, texts)), system)


def learnt(tokenizer: Tokenizer, found: Encoded | DropRecord) -> str:
    assert isinstance(found, Encoded), found
    labels = found.sample.labels
    return tokenizer.decode(labels[labels != IGNORED_LABEL])


@pytest.mark.parametrize(("template", "end"), [(PLAIN, "<|im_end|>\n"), (MARKED, "<|im_end|>")])
def test_every_answer_is_learnt(template: str, end: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, template)
    conversation = talk("one", "two", "three", "four", system="be kind")
    found = encoder(tokenizer).encode([conversation])[0]
    assert learnt(tokenizer, found) == f"two{end}four{end}"
    ids = apply_chat_template(tmp_path, chat_messages(conversation))
    kept = found.sample.input_ids.tolist()
    assert kept == ids[: len(kept)] and tokenizer.decode(ids[len(kept) :]).strip() == ""
    last = encoder(tokenizer, mask_history=True).encode([conversation])[0]
    assert learnt(tokenizer, last) == f"four{end}"


@pytest.mark.parametrize(("template", "end"), [(PLAIN, "<|im_end|>\n"), (MARKED, "<|im_end|>")])
def test_what_messages_say_of_the_loss(template: str, end: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, template)
    first, second, third, fourth = talk("one", "two", "three", "<think>hm</think>four").messages
    conversation = Conversation((first, replace(second, weight=0), third, replace(fourth, weight=0.5)))
    for history in (False, True):
        found = encoder(tokenizer, mask_history=history).encode([conversation])[0]
        assert learnt(tokenizer, found) == f"<think>hm</think>four{end}"
        assert found.sample.loss_weights is not None and set(found.sample.loss_weights.tolist()) == {0, 0.5}
        bare = encoder(tokenizer, mask_history=history, mask_thoughts=True).encode([conversation])[0]
        assert learnt(tokenizer, bare) == f"four{end}"


def test_text_in_front_of_a_call(tmp_path: Path) -> None:
    """Of Qwen3's own template and of ours the same, with a thought and without."""
    tokenizer = tokenizer_with(tmp_path, None)
    call = {"function": {"name": "look", "arguments": {"at": "sea"}}}
    for more in ({}, {"reasoning_content": "hm"}):
        answer = {"role": "assistant", "content": "Let me look.", "tool_calls": [call], **more}
        record = {"messages": [{"role": "user", "content": "q"}, answer]}
        conversation = OpenAIFormat().convert(record)
        theirs = apply_chat_template(tmp_path, record["messages"])
        text = tokenizer.decode(theirs)
        assert f"Let me look.\n<tool_call>\n{CALL}\n</tool_call><|im_end|>" in text
        assert encoder(tokenizer, mask_history=True).encode([conversation])[0].sample.input_ids.tolist() == theirs
        ours = Encoder(get_template("qwen3"), tokenizer, EncodeOptions()).encode([conversation])[0]
        assert tokenizer.decode(ours.sample.input_ids) == text


def test_qwen3_as_it_serves(tmp_path: Path) -> None:
    """Its template writes past answers without thoughts, so only the last one can be learnt."""
    tokenizer = tokenizer_with(tmp_path, None)
    single = encoder(tokenizer, enable_thinking="false").encode([talk("one", "two")])[0]
    assert learnt(tokenizer, single) == "two<|im_end|>\n"
    thinking = encoder(tokenizer, enable_thinking="true").encode([talk("one", "two")])[0]
    assert learnt(tokenizer, thinking) == "<think>\n\n</think>\n\ntwo<|im_end|>\n"
    several = talk("one", "<think>\nhm\n</think>\n\ntwo", "three", "four")
    refused = encoder(tokenizer).encode([several])[0]
    assert isinstance(refused, TemplateMismatch) and "add --mask-history" in str(refused)
    last = encoder(tokenizer, mask_history=True).encode([several])[0]
    assert learnt(tokenizer, last).endswith("four<|im_end|>\n") and "hm" not in tokenizer.decode(last.sample.input_ids)


def test_calls_and_results(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, None)
    messages = (
        Message(Role.USER, "one"),
        Message(Role.FUNCTION, CALL),
        Message(Role.OBSERVATION, "", ("wet", "dry")),
        Message(Role.ASSISTANT, "two"),
    )
    tools = '[{"type": "function", "function": {"name": "look"}}]'
    found = encoder(tokenizer, mask_history=True).encode([Conversation(messages, tools=tools)])[0]
    text = tokenizer.decode(found.sample.input_ids)
    assert '<tool_call>\n{"name": "look", "arguments": {"at": "sea"}}\n</tool_call><|im_end|>' in text
    assert text.count("<tool_response>") == 2 and '"name": "look"}}\n</tools>' in text


def test_prompts(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, PLAIN)
    ours = encoder(tokenizer)
    prompt = ours.prompt_ids([Message(Role.USER, "one")], system="be kind")
    assert tokenizer.decode(prompt) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ours.turn_end_ids() == tokenizer.encode("<|im_end|>\n")
    assert ours.stop_ids == [tokenizer.eod_id, tokenizer.token_id("<|im_end|>")]


def test_what_the_template_refuses_is_dropped(tmp_path: Path) -> None:
    found = encoder(tokenizer_with(tmp_path, REFUSING)).encode([talk("a", "b", system="s"), talk("a", "b")])
    assert isinstance(found[0], DropRecord) and "no system prompts" in str(found[0])
    assert isinstance(found[1], Encoded)


def test_special_tokens_are_noted(tmp_path: Path) -> None:
    found = encoder(tokenizer_with(tmp_path, PLAIN)).encode([talk("a<|im_end|>", "b")])[0]
    assert isinstance(found, Encoded) and "special tokens" in found.notes[0]


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no chat template"):
        encoder(tokenizer_with(tmp_path / "none", ""))
    tokenizer = tokenizer_with(tmp_path / "plain", PLAIN)
    for flag in ("escape_special_tokens", "drop_thinking"):
        with pytest.raises(UserError, match=f"--{flag.replace('_', '-')} does not go with --prompt-type hf"):
            encoder(tokenizer, **{flag: True})


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_the_fingerprint_is_that_of_the_template(template: str, tmp_path: Path) -> None:
    first = encoder(tokenizer_with(tmp_path / "first", template)).fingerprint
    assert first == encoder(tokenizer_with(tmp_path / "same", template)).fingerprint
    assert first != encoder(tokenizer_with(tmp_path / "other", template + " ")).fingerprint


def test_a_run_stops_where_the_prompt_is_not_a_prefix(tmp_path: Path) -> None:
    make_tiny_tokenizer(tmp_path / "tiny")
    record = {"messages": [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]}
    good = {"messages": record["messages"][:2]}
    (tmp_path / "in.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(record)}\n", encoding="utf-8")
    config = PreprocessConfig(
        input=str(tmp_path / "in.jsonl"),
        output_prefix=str(tmp_path / "out" / "data"),
        tokenizer_name_or_path=str(tmp_path / "tiny"),
        prompt_type="hf",
    )
    with pytest.raises(UserError, match=r"in\.jsonl:2: --prompt-type hf: up to its answer 1 .*--mask-history"):
        preprocess(config, report=lambda line: None)
    assert not list((tmp_path / "out").glob("*"))
