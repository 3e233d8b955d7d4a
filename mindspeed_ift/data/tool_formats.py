"""Tools and calls in, text out: how the templates write what a model may call and what it calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mindspeed_ift.data.conversation import DropRecord, ToolCall

QWEN_TOOLS_OPENING = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
"""What Qwen reads in front of the signatures, one a line."""

QWEN_TOOLS_CLOSING = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within"
    " <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
"""What Qwen reads behind the signatures."""


@dataclass(frozen=True)
class ToolFormat:
    """One way to write tools.

    Attributes:
        describe: Descriptions -> text behind the system prompt.
        write_calls: Calls of one message -> texts, each closed like an answer.
        skips_unreadable_calls: LLaMA-Factory 0.8.2 writes nothing at all for a call that is not JSON, not even the
            closing token; later ones refuse the record.
    """

    describe: Callable[[list[dict[str, Any]]], str]
    write_calls: Callable[[list[ToolCall]], list[str]]
    skips_unreadable_calls: bool = False


def _action_parameter(name: str, value: dict[str, Any], required: list[str]) -> str:
    notes = ", required" if name in required else ""
    text = f"  - {name} ({value.get('type', '')}{notes}): {value.get('description', '')}"
    if value.get("enum"):
        text += f", should be one of [{', '.join(map(str, value['enum']))}]"
    if value.get("items"):
        text += f", where each item should be {value['items'].get('type', '')}"
    return text + "\n"


def _describe_for_actions(tools: list[dict[str, Any]]) -> str:
    described, names = [], []
    try:
        for tool in tools:
            tool = tool["function"] if tool.get("type") == "function" and "function" in tool else tool
            parameters = tool["parameters"]
            arguments = "".join(
                _action_parameter(name, value, parameters.get("required") or [])
                for name, value in parameters["properties"].items()
            )
            described.append(
                f"> Tool Name: {tool['name']}\nTool Description: {tool.get('description', '')}\n"
                f"Tool Args:\n{arguments}\n"
            )
            names.append(tool["name"])
    except (KeyError, AttributeError, TypeError):
        raise DropRecord("a tool has no name or no parameters with properties") from None
    return (
        f"You have access to the following tools:\n{''.join(described)}"
        "Use the following format if using a tool:\n```\n"
        f"Action: tool name (one of [{', '.join(names)}]).\nAction Input: the input to the tool, in a JSON format"
        ' representing the kwargs (e.g. ```{"input": "hello world", "num_beams": 5}```).\n```\n'
    )


def _write_actions(calls: list[ToolCall]) -> list[str]:
    return [f"Action: {call.name}\nAction Input: {json.dumps(call.arguments, ensure_ascii=False)}\n" for call in calls]


def _describe_as_qwen(tools: list[dict[str, Any]]) -> str:
    wrapped = (tool if tool.get("type") == "function" else {"type": "function", "function": tool} for tool in tools)
    signatures = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in wrapped)
    return "\n\n" + QWEN_TOOLS_OPENING + signatures + QWEN_TOOLS_CLOSING


def _write_as_qwen(calls: list[ToolCall]) -> list[str]:
    written = (json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False) for call in calls)
    return ["\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in written)]


ACTION = ToolFormat(_describe_for_actions, _write_actions, skips_unreadable_calls=True)
"""``Action: NAME`` and ``Action Input: {...}`` (LLaMA-Factory's default form)."""

QWEN = ToolFormat(_describe_as_qwen, _write_as_qwen)
"""``# Tools`` and ``<tool_call>`` (the form of Qwen2.5 and Qwen3)."""
