"""Names of handlers: what each reads, and what it writes where it has a prompt of its own. A new handler is a new row."""

from __future__ import annotations

import difflib
from typing import Any

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.column_formats import AlpacaFormat, AlpacaPairFormat
from mindspeed_ift.data.dialogue_formats import BelleFormat, JoinedFormat, LeetcodeFormat, MossFormat
from mindspeed_ift.data.message_formats import OpenAIFormat, SharegptFormat, SharegptPairFormat
from mindspeed_ift.data.text_formats import (
    AlpacaTextFormat,
    SharegptTextFormat,
    StackOverflowTextFormat,
    TextFormat,
)
from mindspeed_ift.data.whole_text import EACH_ANSWER, MARKS, STEPS

HANDLERS: dict[str, type[Any]] = {
    "AlpacaStyleInstructionHandler": AlpacaFormat,
    "SharegptStyleInstructionHandler": SharegptFormat,
    "OpenAIInstructionHandler": OpenAIFormat,
    "OpenAIStyleInstructionHandler": OpenAIFormat,
    "AlpacaStylePairwiseHandler": AlpacaPairFormat,
    "SharegptStylePairwiseHandler": SharegptPairFormat,
    "GeneralInstructionHandler": JoinedFormat,
    "BelleMultiTurnInstructionHandler": BelleFormat,
    "MOSSInstructionHandler": MossFormat,
    "MOSSMultiTurnHandler": MossFormat,
    "LeetcodePythonInstructionHandler": LeetcodeFormat,
    "GeneralPretrainHandler": TextFormat,
    "AlpacaPretrainHandler": AlpacaTextFormat,
    "SharegptPretrainHandler": SharegptTextFormat,
    "StackOverflowPythonPretrainHandler": StackOverflowTextFormat,
}
"""``--handler-name`` -> format."""

OWN_PROMPTS: dict[str, str] = {
    "GeneralInstructionHandler": STEPS.name,
    "BelleMultiTurnInstructionHandler": STEPS.name,
    "LeetcodePythonInstructionHandler": STEPS.name,
    "MOSSInstructionHandler": EACH_ANSWER.name,
    "MOSSMultiTurnHandler": MARKS.name,
}
"""``--handler-name`` -> the template that it writes, whatever ``--prompt-type`` says."""

AUTO = ("auto", "LlamaFactoryInstructionHandler")
"""Names that ask to recognize the format; the second leaves it to a file of LLaMA-Factory's in MindSpeed-LLM."""

_ROLLOUTS = (
    "it prepares prompts for reinforcement learning, which is not done here; give an ...InstructionHandler to tune"
)
_OTHERS: dict[str, str] = {
    "HunyuanInstructionHandler": "it needs Hunyuan's own tokenizer; give SharegptStyleInstructionHandler",
    "AlpacaStyleProcessRewardHandler": "it prepares process rewards, which are not learnt here",
    "PPOAlpacaStyleInstructionHandler": _ROLLOUTS,
    "R1AlpacaStyleInstructionHandler": _ROLLOUTS,
    "R1SharegptStyleInstructionHandler": _ROLLOUTS,
}
"""Handlers of MindSpeed-LLM that are none here, and what to do instead."""


def check_handler(name: str) -> None:
    """Refuse a handler that is none.

    Raises:
        UserError: With the nearest name.
    """
    if name in AUTO or name in HANDLERS:
        return
    if name in _OTHERS:
        raise UserError(f"--handler-name {name} is not supported: {_OTHERS[name]}")
    known = [*AUTO, *HANDLERS]
    near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"give one of: {', '.join(known)}"
    raise UserError(f"--handler-name {name} is not a handler; {hint}")


def template_of_handler(name: str) -> str | None:
    """The template that a handler writes whatever ``--prompt-type`` says; None for one that writes that."""
    return OWN_PROMPTS.get(name)
