"""``--prompt-type`` -> template: the table. A new template is a new row.

Rows with the rules of LLaMA-Factory 0.8.2 write what that version writes under the same name, the others what 0.9.5
does (``qwen_lf`` is its ``qwen``), token for token.
"""

from __future__ import annotations

from dataclasses import replace

from mindspeed_ift.data import tool_formats
from mindspeed_ift.data.templates import SLOT, Rules, Template, Token

_CHATML_USER = ("<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n",)
_CHATML_SYSTEM = ("<|im_start|>system\n{{content}}<|im_end|>\n",)
_ALPACA_USER = ("### Instruction:\n{{content}}\n\n### Response:\n",)
_LLAMA3_TURN = "<|start_header_id|>{role}<|end_header_id|>\n\n{{content}}<|eot_id|>"
_LLAMA3_ANSWERS = "<|start_header_id|>assistant<|end_header_id|>\n\n"

_CHATML = Template(
    name="chatml",
    user=_CHATML_USER,
    observation=("<|im_start|>tool\n{{content}}<|im_end|>\n<|im_start|>assistant\n",),
    system=_CHATML_SYSTEM,
    separator=("\n",),
    stop_words=("<|im_end|>", "<|im_start|>"),
    replace_eos=True,
)

_LATER = Template(
    name="",
    user=(SLOT,),
    observation=(SLOT,),
    function=(SLOT, Token.END),
    observation_join="\n</tool_response>\n<tool_response>\n",
    tools=tool_formats.ACTION_0_9,
    rules=Rules.LLAMA_FACTORY_0_9,
)
"""What LLaMA-Factory 0.9.5 takes where a template says nothing."""

_QWEN3 = replace(
    _LATER,
    name="qwen3",
    user=_CHATML_USER,
    observation=(
        "<|im_start|>user\n<tool_response>\n{{content}}\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    ),
    assistant=("{{content}}<|im_end|>\n",),
    function=("{{content}}<|im_end|>\n",),
    system=_CHATML_SYSTEM,
    stop_words=("<|im_end|>",),
    replace_eos=True,
    tools=tool_formats.QWEN,
    thinking=True,
)

_ROWS = (
    replace(_CHATML, name="qwen", default_system="You are a helpful assistant.", stop_words=("<|im_end|>",)),
    replace(
        _QWEN3,
        name="qwen_lf",
        default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        thinking=False,
    ),
    _QWEN3,
    replace(_QWEN3, name="qwen3_nothink", thinking=False),
    Template(
        name="default",
        user=("Human: {{content}}\nAssistant: ",),
        observation=("Human: {{content}}\nAssistant: ",),
        system=("{{content}}\n",),
        separator=("\n",),
    ),
    Template(
        name="empty",
        user=(SLOT,),
        observation=(SLOT,),
        assistant=(SLOT,),
        function=("Action: {{name}}\nAction Input: {{arguments}}\n",),
        prefix=(Token.BEGIN,),
        efficient_eos=True,
    ),
    Template(
        name="alpaca",
        user=_ALPACA_USER,
        observation=_ALPACA_USER,
        separator=("\n\n",),
        default_system="Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n",
    ),
    _CHATML,
    Template(
        name="llama2",
        user=(Token.BEGIN, "[INST] {{content}} [/INST]"),
        observation=(Token.BEGIN, "[INST] {{content}} [/INST]"),
        system=("<<SYS>>\n{{content}}\n<</SYS>>\n\n",),
        system_in_user=True,
    ),
    Template(
        name="llama3",
        user=(_LLAMA3_TURN.replace("{role}", "user") + _LLAMA3_ANSWERS,),
        observation=(_LLAMA3_TURN.replace("{role}", "tool") + _LLAMA3_ANSWERS,),
        system=(_LLAMA3_TURN.replace("{role}", "system"),),
        prefix=(Token.BEGIN,),
        stop_words=("<|eot_id|>",),
        replace_eos=True,
    ),
    Template(
        name="mistral",
        user=("[INST] {{content}} [/INST]",),
        observation=("[INST] {{content}} [/INST]",),
        prefix=(Token.BEGIN,),
    ),
    replace(
        _LATER,
        name="deepseek3",
        user=("<｜User｜>{{content}}<｜Assistant｜>",),
        observation=("<｜User｜>{{content}}<｜Assistant｜>",),
        prefix=(Token.BEGIN,),
    ),
    replace(
        _LATER,
        name="glm4",
        user=("<|user|>\n{{content}}<|assistant|>",),
        observation=("<|observation|>\n{{content}}<|assistant|>",),
        assistant=("\n{{content}}",),
        function=(SLOT,),
        system=("<|system|>\n{{content}}",),
        prefix=("[gMASK]<sop>",),
        stop_words=("<|user|>", "<|observation|>"),
        efficient_eos=True,
        tools=tool_formats.GLM4,
    ),
)

TEMPLATES: dict[str, Template] = {template.name: template for template in _ROWS}
"""``--prompt-type`` -> template."""
