"""What a template writes around the messages, beyond what the goldens hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.conversation import Conversation, DropRecord, Message, Role
from mindspeed_ift.data.template_choice import get_template
from mindspeed_ift.data.template_table import TEMPLATES
from mindspeed_ift.data.templates import TOOLS_NOTE, Token

CALLS = json.dumps([{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}])


def conversation(answer: str, role: Role = Role.ASSISTANT, **options: str) -> Conversation:
    return Conversation((Message(Role.USER, "q"), Message(role, answer)), **options)


def written(template: str, talk: Conversation, **options: object) -> str:
    pieces = [
        piece for turn in TEMPLATES[template].render(talk, **options) for piece in (*turn.source, "|", *turn.target)
    ]
    return "".join({Token.END: "<END>", Token.BEGIN: "<BEGIN>"}.get(piece) or "".join(piece) for piece in pieces)


def test_slots_in_messages_are_text() -> None:
    assert "<|im_start|>user\n{content}{{content}}{{idx}}<|im_end|>" in written(
        "qwen", Conversation((Message(Role.USER, "{content}{{content}}{{idx}}"), Message(Role.ASSISTANT, "a")))
    )


def test_parallel_calls() -> None:
    assert (
        written("qwen", conversation(CALLS, Role.FUNCTION))
        .split("|", 4)[-1]
        .endswith('Action: f\nAction Input: {"x": 1}\n<END>Action: g\nAction Input: {}\n<END>')
    )
    assert written("qwen3", conversation(CALLS, Role.FUNCTION), enable_thinking="true").endswith(
        '|<think>\n\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call><|im_end|>\n'
    )


def test_parallel_results_share_a_prompt() -> None:
    talk = Conversation(
        (
            Message(Role.USER, "q"),
            Message(Role.FUNCTION, CALLS),
            Message(Role.OBSERVATION, "", ("1", "2")),
            Message(Role.ASSISTANT, "a"),
        )
    )
    assert (
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>"
        in written("qwen3", talk)
    )


def test_a_thought_before_a_call_stays() -> None:
    assert "|<think>\nhm\n</think>\n\n<tool_call>" in written(
        "qwen3", conversation("<think>\nhm\n</think>\n\n" + CALLS, Role.FUNCTION), enable_thinking="true"
    )


@pytest.mark.parametrize("thinking", ["none", "true", "false"])
def test_thoughts(thinking: str) -> None:
    empty, thought = "<think>\n\n</think>\n\n", "<think>\nhm\n</think>\n\n"
    without = written("qwen3", conversation("a"), enable_thinking=thinking)
    assert without.endswith(f"|{empty}a<|im_end|>\n" if thinking == "true" else f"{empty}|a<|im_end|>\n")
    with_thought = written("qwen3", conversation(thought + "a"), enable_thinking=thinking)
    assert with_thought.endswith(f"{empty}|a<|im_end|>\n" if thinking == "false" else f"|{thought}a<|im_end|>\n")


def test_tools_must_be_readable() -> None:
    for tools, reason in (("not json", "not JSON"), ('["x"]', "list of objects")):
        with pytest.raises(DropRecord, match=reason):
            written("qwen3", conversation("a", tools=tools))
    with pytest.raises(DropRecord, match="no name or no parameters"):
        written("qwen", conversation("a", tools='[{"name": "f"}]'))
    assert "# Tools" not in written("qwen3", conversation("a", tools="[]"))


def test_calls_must_be_readable() -> None:
    with pytest.raises(DropRecord, match="not JSON"):
        written("qwen3", conversation("no json", Role.FUNCTION))
    assert written("qwen", conversation("no json", Role.FUNCTION)).endswith("assistant\n|")


def test_calls_in_other_forms() -> None:
    one = json.dumps({"name": "f", "arguments": {"x": 1}})
    assert written("glm4", conversation(one, Role.FUNCTION)).endswith('<|assistant|>|f\n{"x": 1}')
    with pytest.raises(DropRecord, match="one function call a turn"):
        written("glm4", conversation(CALLS, Role.FUNCTION))
    assert written("deepseek3", conversation(CALLS, Role.FUNCTION)).endswith(
        '|Action: f\nAction Input: {"x": 1}\nAction: g\nAction Input: {}<END>'
    )
    marked = f"So:\n<tool_call>\n{one}\n</tool_call>"
    assert "|So:\n<tool_call>" in written("qwen3_nothink", conversation(marked, Role.FUNCTION))


def test_tools_that_are_not_json_are_noted_by_the_older_rules() -> None:
    talk = conversation("a", tools="not json")
    assert written("llama2", talk) == "<BEGIN>[INST] <<SYS>>\n\n<</SYS>>\n\nq [/INST]|a<END>"
    assert TEMPLATES["llama2"].notes(talk) == (TOOLS_NOTE,)


def test_the_system_prompt_within_the_first_prompt() -> None:
    talk = Conversation(tuple(map(Message, [Role.USER, Role.ASSISTANT] * 2, "abcd")), system="s")
    assert written("llama2", talk) == (
        "<BEGIN>[INST] <<SYS>>\ns\n<</SYS>>\n\na [/INST]|b<END><BEGIN>[INST] c [/INST]|d<END>"
    )


def test_history_without_thoughts() -> None:
    """The answers before the last question lose theirs; those to a tool's result, after it, keep them."""
    thought = "<think>\nhm\n</think>\n\n"
    roles = [Role.USER, Role.ASSISTANT, Role.USER, Role.FUNCTION, Role.OBSERVATION, Role.ASSISTANT]
    texts = ["q", thought + "a", "r", thought + CALLS, "s", thought + "b"]
    talk = Conversation(tuple(map(Message, roles, texts)))
    for name in ("qwen3", "qwen_lf"):
        text = written(name, talk, drop_thinking=True)
        assert text.count("<think>") == 2 and "assistant\n|a<|im_end|>" in text
        assert written(name, talk).count("<think>") == 3


def test_a_misspelt_name() -> None:
    with pytest.raises(UserError, match="--prompt-type qwen_3 is not a template; did you mean qwen3"):
        get_template("qwen_3")
    with pytest.raises(UserError, match="give one of: qwen, qwen_lf, qwen3"):
        get_template("xyz")


@pytest.mark.parametrize("page", ["compatibility.md", "compatibility.zh.md"])
def test_the_page_of_differences_names_every_template(page: str) -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / page).read_text(encoding="utf-8")
    table = text.split("\n## ")[1]
    assert set(re.findall(r"`([\w.-]+)`", table)) >= {*TEMPLATES, "hf"}
