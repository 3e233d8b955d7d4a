"""Records that are no samples: each is counted with its reason, whatever the template, and the others are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.preparing import GOOD, kept_and_dropped, lines


def talk(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"conversations": list(messages), **more}


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
DEEP = "[" * 100_000 + "]" * 100_000
HALF = "\ud83d"
CUT = "its text is cut within a character (half of a surrogate pair)"

SENSELESS: dict[str, tuple[dict[str, Any], str | None]] = {
    "no answer": ({"instruction": "q", "output": None}, "'output' is missing or null"),
    "number for a question": ({"instruction": 5, "output": "a"}, "'instruction' is not text"),
    "truth for a question": ({"instruction": True, "output": "a"}, "'instruction' is not text"),
    "list for an answer": ({"instruction": "q", "output": [1]}, "'output' is not text"),
    "object for a question": ({"instruction": {"a": 1}, "output": "a"}, "'instruction' is not text"),
    "half a character in a question": ({"instruction": HALF, "output": "a"}, CUT),
    "half a character in an answer": ({"instruction": "q", "output": "好" + HALF}, CUT),
    "null messages": (talk(None), "'conversations' is not a list of messages"),
    "messages as an object": (talk() | {"conversations": {"a": 1}}, "'conversations' is not a list of messages"),
    "messages as text": (talk() | {"conversations": "x"}, "'conversations' is not a list of messages"),
    "an empty message": (talk({}), "unknown or misplaced role 'None'"),
    "a null message": (talk({"from": None, "value": None}), "unknown or misplaced role 'None'"),
    "a list for a role": (talk({"from": ["human"], "value": "q"}, GPT), "unknown or misplaced role \"['human']\""),
    "an object for a role": (talk({"from": {"a": 1}, "value": "q"}, GPT), "unknown or misplaced role \"{'a': 1}\""),
    "half a character for a role": (talk({"from": HALF, "value": "q"}, GPT), r"unknown or misplaced role '\ud83d'"),
    "half a character in a talk": (talk({"from": "human", "value": HALF}, GPT), CUT),
    "half a character in the tools": (talk(HUMAN, GPT, tools=[{"name": HALF, "parameters": {}}]), CUT),
    "half a character in tools as text": (talk(HUMAN, GPT, tools=json.dumps([{"name": HALF}])), CUT),
    "a number for tools": (talk(HUMAN, GPT, tools=5), "the description of the tools is not a list of objects"),
    "tools that are numbers": (talk(HUMAN, GPT, tools=[5]), "the description of the tools is not a list of objects"),
    "deep tools": (talk(HUMAN, GPT, tools=DEEP), "the description of the tools is not JSON"),
    "a deep call": (
        talk(HUMAN, {"from": "function_call", "value": f'{{"name": "f", "arguments": {DEEP}}}'}),
        "a function call is not JSON",
    ),
    "null content": (chat({"role": "user", "content": None}, ASSISTANT), "a message has no text"),
    "null parts": (
        chat({"role": "user", "content": [None]}, ASSISTANT),
        "a message holds more than text, thoughts and calls",
    ),
    "a list for the kind of a part": (
        chat({"role": "user", "content": [{"type": ["text"], "text": "q"}]}, ASSISTANT),
        "a message holds more than text, thoughts and calls",
    ),
    "a number for calls": (chat(USER, {"role": "assistant", "tool_calls": 5}), "'tool_calls' is not a list"),
    "an object for calls": (chat(USER, {"role": "assistant", "tool_calls": {"a": 1}}), "'tool_calls' is not a list"),
    "a number for calls beside parts": (
        chat(USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}], "tool_calls": 5}),
        "'tool_calls' is not a list",
    ),
    "null calls": (
        chat(USER, {"role": "assistant", "tool_calls": [None]}),
        "a function call has no name or no arguments",
    ),
    "deep arguments": (
        chat(USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": DEEP}}]}),
        "a function call is not JSON",
    ),
    "a number for a thought": (
        chat(USER, {"role": "assistant", "content": "a", "reasoning_content": 5}),
        "a thought is not text",
    ),
}


@pytest.mark.parametrize("prompt_type", ["qwen", "qwen3", "mistral"])
@pytest.mark.parametrize("case", SENSELESS)
def test_a_senseless_record_is_counted(case: str, prompt_type: str, tokenizer: Path, tmp_path: Path) -> None:
    record, reason = SENSELESS[case]
    good = (
        GOOD
        if "instruction" in record
        else talk(HUMAN, GPT, tools="")
        if "conversations" in record
        else chat(USER, ASSISTANT)
    )
    kept, dropped = kept_and_dropped(
        lines(*[good] * 40, record, good), "a.jsonl", tokenizer, tmp_path, prompt_type=prompt_type
    )
    if prompt_type == "qwen" and ("tools" in case or case == "a deep call"):
        # LLaMA-Factory 0.8.2 reads some of these as no tools at all.
        assert kept + sum(dropped.values()) == 42 and set(dropped) <= {reason, None}, dropped
    else:
        assert (kept, dropped) == (41, {reason: 1})


def test_half_a_character_of_plain_text_is_counted(tokenizer: Path, tmp_path: Path) -> None:
    records = lines(*[{"text": "a"}] * 40, {"text": HALF})
    assert kept_and_dropped(records, "a.jsonl", tokenizer, tmp_path) == (40, {CUT: 1})


@pytest.mark.parametrize("workers", [1, 2])
def test_deep_nesting_in_a_column_that_is_not_read(workers: int, tokenizer: Path, tmp_path: Path) -> None:
    """JSON reads a thousand levels, but handing a record to another process takes two steps for each."""
    record = b'{"instruction": "q", "output": "a", "raw": ' + b"[" * 900 + b"]" * 900 + b"}\n"
    assert kept_and_dropped(record * 3, "a.jsonl", tokenizer, tmp_path, workers=workers) == (3, {})
