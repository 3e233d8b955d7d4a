"""Records of random JSON, in every format and template: a sample or a reason, never an error."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.encode import EncodeOptions
from mindspeed_ift.data.formats import make_format
from mindspeed_ift.data.handlers import HANDLERS
from mindspeed_ift.data.records import Origin
from mindspeed_ift.data.template_table import TEMPLATES
from mindspeed_ift.data.tokenizer import Tokenizer, load_tokenizer
from mindspeed_ift.data.workers import Job, Worker
from tests.random_examples import some
from tests.tiny_tokenizer import make_tiny_tokenizer

MADE = ("code_with_problem", "code_only", "explanation_only", "title", "question_body", "answer_body")
COLUMNS = (
    *("instruction", "input", "output", "response", "history", "system", "tools", "chosen", "rejected"),
    *("conversations", "messages", "text", "chat"),
    *MADE,
)
FIELDS = (
    *("from", "value", "role", "content", "tool_calls", "tool_call_id", "reasoning_content", "loss", "weight"),
    *("type", "text", "function", "name", "arguments", "description", "parameters", "properties", "required"),
    *("enum", "items", "Human", "MOSS"),
)
WORDS = (
    "Human: q\nAssistant:",
    "human",
    "gpt",
    "user",
    "assistant",
    "system",
    "tool",
    "observation",
    "function_call",
    "function",
    "text",
    "q",
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(max_size=8)
    | st.text(st.characters(categories=["Cs"]), min_size=1, max_size=2)
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5)
    return st.lists(inner, max_size=4) | objects | st.lists(objects, max_size=4) | inner.map(json.dumps)


VALUES = st.recursive(LEAVES, nested, max_leaves=12)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"from": st.sampled_from(WORDS), "role": st.sampled_from(WORDS), "value": VALUES, "content": VALUES},
        optional={"tool_calls": VALUES, "reasoning_content": VALUES, "loss": VALUES, "weight": VALUES},
    ),
    max_size=5,
)
RECORDS = st.dictionaries(st.sampled_from(COLUMNS), VALUES | MESSAGES, max_size=8)


@cache
def tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return load_tokenizer(make_tiny_tokenizer(folder))


def good(handler: str) -> dict[str, Any]:
    """A record that the handler reads, so that the format can be made."""
    talk = [{"from": "human", "value": "q", "role": "user", "content": "q"}]
    answer = {"from": "gpt", "value": "a", "role": "assistant", "content": "a"}
    pair = "Pair" in handler
    if handler.startswith("Alpaca") or handler == "auto":
        return {"instruction": "q", **({"chosen": "a", "rejected": "b"} if pair else {"output": "a"})}
    if pair:
        return {"conversations": talk, "messages": talk, "chosen": answer, "rejected": answer}
    whole = {"conversations": [*talk, answer], "messages": [*talk, answer], "text": "a", "chat": {}}
    return {**whole, **dict.fromkeys(MADE, "a"), "instruction": "q", "output": "a"}


@cache
def worker(handler: str, name: str, mask_thoughts: bool) -> Worker:
    keys = {key: key for key in ("tools", "system") if handler == "auto" or key in HANDLERS[handler].form.keys}
    form = make_format(handler, keys, ("text",), [{**good(handler), **dict.fromkeys(keys)}], "a.jsonl")
    return Worker(Job(form, name, None, EncodeOptions(mask_thoughts=mask_thoughts)), tokenizer())


@pytest.mark.parametrize("handler", ["auto", *HANDLERS])
@some(30)
@given(record=RECORDS, name=st.sampled_from(sorted(TEMPLATES)), mask_thoughts=st.booleans())
def test_a_sample_or_a_reason(handler: str, record: dict[str, Any], name: str, mask_thoughts: bool) -> None:
    try:
        found = worker(handler, name, mask_thoughts).encode([(record, Origin("a.jsonl", 1))])
    except UserError as error:
        assert "a.jsonl:1: " in str(error)
        return
    assert found.ledger.read == 1 == len(found.ledger.entries)
