"""Hunyuan's conversations: its tokenizer's chat template writes them, and its own tokens say what is learnt."""

from __future__ import annotations

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.conversation import Conversation, DropRecord
from mindspeed_ift.data.cutting import Pair
from mindspeed_ift.data.encode import EncodeOptions
from mindspeed_ift.data.hf_template import ChatTemplateEncoder
from mindspeed_ift.data.templates import SLOT, Rules, Template
from mindspeed_ift.data.tokenizer import Tokenizer

BEGIN, END = "<|extra_0|>", "<|eos|>"
"""Tokens at the begin and end of an answer."""

HUNYUAN = Template(
    name="hunyuan", user=(SLOT,), observation=(SLOT,), rules=Rules.LLAMA_FACTORY_0_9, thinking=True, of_handler=True
)
"""Stands for the chat template of Hunyuan's tokenizer."""


class HunyuanEncoder(ChatTemplateEncoder):
    """Learns from each `BEGIN` to its `END`, both included, as MindSpeed-LLM's HunyuanInstructionHandler does.

    The chat template counts on a message of the system in front, so there is one, empty where the record has none.

    Args:
        template: `HUNYUAN`.
        tokenizer: Hunyuan's.
        options: See `ChatTemplateEncoder`.

    Raises:
        UserError: It is another tokenizer, or the options do not go with it.
    """

    always_system = True

    def __init__(self, template: Template, tokenizer: Tokenizer, options: EncodeOptions) -> None:
        begin, end = map(tokenizer.token_id, (BEGIN, END))
        if begin is None or end is None:
            raise UserError(
                f"HunyuanInstructionHandler learns what stands between {BEGIN} and {END}, tokens of Hunyuan's tokenizer"
                f" that {tokenizer.path} lacks; give that tokenizer, or --handler-name SharegptStyleInstructionHandler"
            )
        self._begin, self._end = begin, end
        super().__init__(template, tokenizer, options)
        self._marked = False

    def turn_ids(self, conversation: Conversation) -> list[Pair]:
        """See `Encoder.turn_ids`; a prompt ends in `BEGIN`, where the model answers."""
        turns = super().turn_ids(conversation)
        return [(source + target[:1], target[1:]) for source, target in turns]

    def _turns(self, conversation: Conversation) -> list[Pair]:
        turns: list[Pair] = []
        source: list[int] = []
        target: list[int] = []
        for token in self.tokenizer.encode(self._text(conversation)):
            (target if target or token == self._begin else source).append(token)
            if target and token == self._end:
                turns.append((source, target))
                source, target = [], []
        if len(turns) * 2 != len(conversation.messages):
            raise DropRecord(f"its answers are not those between {BEGIN} and {END} of the chat template")
        return turns
