"""Names of handlers: what each reads, and what it writes where it has a prompt of its own. A new handler is a new row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mindspeed_ift.config.errors import UserError, nearest
from mindspeed_ift.data.column_formats import AlpacaFormat, AlpacaPairFormat
from mindspeed_ift.data.dialogue_formats import BelleFormat, JoinedFormat, LeetcodeFormat, MossFormat
from mindspeed_ift.data.hunyuan_template import HUNYUAN
from mindspeed_ift.data.message_formats import OpenAIFormat, SharegptFormat, SharegptPairFormat
from mindspeed_ift.data.templates import Template
from mindspeed_ift.data.text_formats import (
    AlpacaTextFormat,
    SharegptTextFormat,
    StackOverflowTextFormat,
    TextFormat,
)
from mindspeed_ift.data.whole_text import EACH_ANSWER, MARKS, STEPS


@dataclass(frozen=True)
class Handler:
    """What a handler reads and writes.

    Attributes:
        form: Format of its records.
        template: Of its own prompt, which it writes whatever ``--prompt-type`` says; None: that is what it writes.
        prompts_only: Writes the prompt alone, for reinforcement learning.
        keeps_columns: Keeps other columns beside it.
    """

    form: type[Any]
    template: Template | None = None
    prompts_only: bool = False
    keeps_columns: bool = False


HANDLERS: dict[str, Handler] = {
    "AlpacaStyleInstructionHandler": Handler(AlpacaFormat),
    "SharegptStyleInstructionHandler": Handler(SharegptFormat),
    "OpenAIInstructionHandler": Handler(OpenAIFormat),
    "OpenAIStyleInstructionHandler": Handler(OpenAIFormat),
    "AlpacaStylePairwiseHandler": Handler(AlpacaPairFormat),
    "SharegptStylePairwiseHandler": Handler(SharegptPairFormat),
    "GeneralInstructionHandler": Handler(JoinedFormat, template=STEPS),
    "BelleMultiTurnInstructionHandler": Handler(BelleFormat, template=STEPS),
    "MOSSInstructionHandler": Handler(MossFormat, template=EACH_ANSWER),
    "MOSSMultiTurnHandler": Handler(MossFormat, template=MARKS),
    "LeetcodePythonInstructionHandler": Handler(LeetcodeFormat, template=STEPS),
    "HunyuanInstructionHandler": Handler(SharegptFormat, template=HUNYUAN),
    "PPOAlpacaStyleInstructionHandler": Handler(AlpacaFormat, prompts_only=True),
    "R1AlpacaStyleInstructionHandler": Handler(AlpacaFormat, prompts_only=True, keeps_columns=True),
    "R1SharegptStyleInstructionHandler": Handler(SharegptFormat, prompts_only=True, keeps_columns=True),
    "GeneralPretrainHandler": Handler(TextFormat),
    "AlpacaPretrainHandler": Handler(AlpacaTextFormat),
    "SharegptPretrainHandler": Handler(SharegptTextFormat),
    "StackOverflowPythonPretrainHandler": Handler(StackOverflowTextFormat),
}
"""``--handler-name`` -> handler."""

KEEPERS = tuple(name for name, handler in HANDLERS.items() if handler.keeps_columns)
"""Handlers that keep other columns beside a prompt."""

AUTO = ("auto", "LlamaFactoryInstructionHandler")
"""Names that ask to recognize the format; the second leaves it to a file of LLaMA-Factory's in MindSpeed-LLM."""

_REMOVED = "AlpacaStyleProcessRewardHandler"


def own_template(name: str) -> Template | None:
    """That of a handler with a prompt of its own; None for all others."""
    return HANDLERS[name].template if name in HANDLERS else None


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
