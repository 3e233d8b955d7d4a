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

_GLM_MOE_TOOLS_CLOSING = (
    "\n</tools>\n\nFor each function call, output the function name and arguments within the following XML format:"
    "\n<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}</arg_value>"
    "\n<arg_key>{arg-key-2}</arg_key>\n<arg_value>{arg-value-2}</arg_value>\n...\n</tool_call>\n"
)

_GLM_TOOLS_OPENING = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
)


@dataclass(frozen=True)
class ToolFormat:
    """One way to write tools.

    Attributes:
        name: As in LLaMA-Factory's ``tool_format``.
        describe: Descriptions -> text behind the system prompt.
        write_calls: Calls of one message -> text; unused where the template itself has slots for the parts of a call.
    """

    name: str
    describe: Callable[[list[dict[str, Any]]], str]
    write_calls: Callable[[list[ToolCall]], str]


def _bare(tool: dict[str, Any]) -> dict[str, Any]:
    return tool["function"] if tool.get("type") == "function" and "function" in tool else tool


def wrapped(tool: dict[str, Any]) -> dict[str, Any]:
    """A description as OpenAI has it, with its type beside it."""
    return tool if tool.get("type") == "function" else {"type": "function", "function": tool}


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _action_parameter(name: str, value: dict[str, Any], required: list[str]) -> str:
    notes = ", required" if name in required else ""
    text = f"  - {name} ({value.get('type', '')}{notes}): {value.get('description', '')}"
    if value.get("enum"):
        text += f", should be one of [{', '.join(map(str, value['enum']))}]"
    if value.get("items"):
        text += f", where each item should be {value['items'].get('type', '')}"
    return text + "\n"


def _describe_actions(tools: list[dict[str, Any]]) -> tuple[str, str]:
    """The descriptions of tools, and their names."""
    described, names = [], []
    try:
        for tool in map(_bare, tools):
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
        return "".join(described), ", ".join(names)
    except (KeyError, AttributeError, TypeError):
        raise DropRecord("a tool has no name or no parameters with properties") from None


def _describe_for_actions(tools: list[dict[str, Any]], stop: str) -> str:
    """
    Args:
        tools: Descriptions.
        stop: Ends two of the sentences: "." before LLaMA-Factory 0.9, nothing since.
    """
    described, names = _describe_actions(tools)
    return (
        f"You have access to the following tools:\n{described}"
        "Use the following format if using a tool:\n```\n"
        f"Action: tool name (one of [{names}]){stop}\nAction Input: the input to the tool, in a JSON format"
        ' representing the kwargs (e.g. ```{"input": "hello world", "num_beams": 5}```)'
        f"{stop}\n```\n"
    )


def _write_actions(calls: list[ToolCall]) -> str:
    return "\n".join(f"Action: {call.name}\nAction Input: {_json(call.arguments)}" for call in calls)


def _describe_in_xml(tools: list[dict[str, Any]], opening: str, closing: str) -> str:
    return opening + "".join("\n" + _json(wrapped(tool)) for tool in tools) + closing


def _write_as_qwen(calls: list[ToolCall]) -> str:
    written = (_json({"name": call.name, "arguments": call.arguments}) for call in calls)
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in written)


def _describe_as_glm(tools: list[dict[str, Any]]) -> str:
    try:
        described = [
            f"\n\n## {tool['name']}\n\n{_json(tool, indent=4)}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
            for tool in map(_bare, tools)
        ]
    except KeyError:
        raise DropRecord("a tool has no name") from None
    return _GLM_TOOLS_OPENING + "".join(described)


def _write_as_glm(calls: list[ToolCall]) -> str:
    if len(calls) != 1:
        raise DropRecord("GLM-4 writes one function call a turn, not several")
    return f"{calls[0].name}\n{_json(calls[0].arguments)}"


def _write_as_glm_moe(calls: list[ToolCall]) -> str:
    written = []
    for call in calls:
        if not isinstance(call.arguments, dict):
            raise DropRecord("the arguments of a function call are not an object")
        values = {name: value if isinstance(value, str) else _json(value) for name, value in call.arguments.items()}
        pairs = (f"\n<arg_key>{name}</arg_key>\n<arg_value>{value}</arg_value>" for name, value in values.items())
        written.append(f"\n<tool_call>{call.name}{''.join(pairs)}")
    return "\n".join(written)


def _write_as_mistral(calls: list[ToolCall]) -> str:
    return _json([{"name": call.name, "arguments": call.arguments} for call in calls])


ACTION = ToolFormat("default", lambda tools: _describe_for_actions(tools, "."), _write_actions)
"""``Action: NAME`` and ``Action Input: {...}``, as LLaMA-Factory 0.8.2 describes it."""

ACTION_0_9 = ToolFormat("default", lambda tools: _describe_for_actions(tools, ""), _write_actions)
"""The same, as LLaMA-Factory 0.9.5 describes it."""

QWEN = ToolFormat(
    "qwen",
    lambda tools: _describe_in_xml(tools, "\n\n" + QWEN_TOOLS_OPENING, QWEN_TOOLS_CLOSING),
    _write_as_qwen,
)
"""``# Tools`` and ``<tool_call>`` (the form of Qwen2.5 and Qwen3)."""

GLM4 = ToolFormat("glm4", _describe_as_glm, _write_as_glm)
"""The name, and the arguments as JSON on the next line."""

TOOL_FORMATS = {
    form.name: form
    for form in (
        ACTION,
        QWEN,
        GLM4,
        ToolFormat(
            "glm4_moe",
            lambda tools: _describe_in_xml(tools, "\n\n" + QWEN_TOOLS_OPENING, _GLM_MOE_TOOLS_CLOSING),
            _write_as_glm_moe,
        ),
        ToolFormat(
            "ling",
            lambda tools: _describe_in_xml(tools, QWEN_TOOLS_OPENING, QWEN_TOOLS_CLOSING) + "\ndetailed thinking off",
            _write_as_qwen,
        ),
        ToolFormat(
            "mistral",
            lambda tools: f"[AVAILABLE_TOOLS] {_json([wrapped(tool) for tool in tools])}[/AVAILABLE_TOOLS]",
            _write_as_mistral,
        ),
    )
}
"""Name for a template file -> form. Source: LLaMA-Factory 0.9.5 (``ACTION``: 0.8.2)."""
