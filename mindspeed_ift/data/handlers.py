"""Names of handlers: what each reads, and what it writes where it has a prompt of its own. A new handler is a new row."""

from __future__ import annotations

from typing import Any

from mindspeed_ift.config.errors import UserError, nearest
from mindspeed_ift.data.column_formats import AlpacaFormat, AlpacaPairFormat
from mindspeed_ift.data.dialogue_formats import BelleFormat, JoinedFormat, LeetcodeFormat, MossFormat
from mindspeed_ift.data.hunyuan_template import HUNYUAN
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
    "HunyuanInstructionHandler": SharegptFormat,
    "PPOAlpacaStyleInstructionHandler": AlpacaFormat,
    "R1AlpacaStyleInstructionHandler": AlpacaFormat,
    "R1SharegptStyleInstructionHandler": SharegptFormat,
    "GeneralPretrainHandler": TextFormat,
    "AlpacaPretrainHandler": AlpacaTextFormat,
    "SharegptPretrainHandler": SharegptTextFormat,
    "StackOverflowPythonPretrainHandler": StackOverflowTextFormat,
}
"""``--handler-name`` -> format."""

KEEPERS = ("R1AlpacaStyleInstructionHandler", "R1SharegptStyleInstructionHandler")
"""Handlers that keep other columns beside a prompt."""

ROLLOUTS = ("PPOAlpacaStyleInstructionHandler", *KEEPERS)
"""Handlers that write the prompt alone, for reinforcement learning."""

OWN_PROMPTS: dict[str, str] = {
    "GeneralInstructionHandler": STEPS.name,
    "BelleMultiTurnInstructionHandler": STEPS.name,
    "LeetcodePythonInstructionHandler": STEPS.name,
    "MOSSInstructionHandler": EACH_ANSWER.name,
    "MOSSMultiTurnHandler": MARKS.name,
    "HunyuanInstructionHandler": HUNYUAN.name,
}
"""``--handler-name`` -> the template that it writes, whatever ``--prompt-type`` says."""

AUTO = ("auto", "LlamaFactoryInstructionHandler")
"""Names that ask to recognize the format; the second leaves it to a file of LLaMA-Factory's in MindSpeed-LLM."""

_REMOVED = "AlpacaStyleProcessRewardHandler"


def check_handler(name: str) -> None:
    """Refuse a handler that is none.

    Raises:
        UserError: With the nearest name.
    """
    if name in AUTO or name in HANDLERS:
        return
    if name == _REMOVED:
        raise UserError(
            f"--handler-name {name} is not supported: its labels are process rewards, whose training MindSpeed-LLM has"
            " removed; give AlpacaStyleInstructionHandler to tune on answers"
        )
    known = [*AUTO, *HANDLERS]
    hint = nearest(name, known, f"give one of: {', '.join(known)}", cutoff=0.5)
    raise UserError(f"--handler-name {name} is not a handler; {hint}")
