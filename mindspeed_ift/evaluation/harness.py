"""Our model as EleutherAI's lm-evaluation-harness wants to ask one. Imports that library, which is an extra."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.conversation import DropRecord, Message, Role
from mindspeed_ift.data.encode import Encoder
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample
from mindspeed_ift.evaluation.answers import answer
from mindspeed_ift.evaluation.losses import record_losses
from mindspeed_ift.inference.load import Loaded
from mindspeed_ift.inference.sampling import Sampling

_MAX_GEN_TOKS = 256  # the harness's default
_SAMPLING = ("top_k", "top_p", "repetition_penalty")


class HarnessModel(TemplateLM):
    """Scores continuations and continues texts.

    Every rank of a layout asks the same questions and gets all answers: for the harness each is alone, and ranks share
    the work where it does not see it.

    Args:
        loaded: the model.
        encoder: whose tokenizer and template are asked with.
        seq_length: tokens of a row that continuations share.
        at_once: texts continued at once.
    """

    def __init__(self, loaded: Loaded, encoder: Encoder, seq_length: int, at_once: int) -> None:
        super().__init__()
        self._loaded, self._encoder, self._text = loaded, encoder, encoder.tokenizer
        self._seq_length, self._at_once = seq_length, at_once
        self.max_length = loaded.model.architecture.max_position_embeddings
        self.shortened = 0
        """Requests whose beginning was left out, since the model has not as many positions."""

    @property
    def eot_token_id(self) -> int:
        """That ends a text."""
        return self._text.eod_id

    @property
    def prefix_token_id(self) -> int:
        """That stands before a continuation without a context."""
        return self._text.eod_id if self._text.bos_id is None else self._text.bos_id

    @property
    def tokenizer_name(self) -> str:
        """For the harness's records."""
        return str(self._text.path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, with no beginning or end added."""
        return self._text.encode(string)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A talk as training would show it, up to where the model answers, or to the beginning of its answer."""
        system = "\n".join(said["content"] for said in chat_history if said["role"] == "system")
        messages = [Message(Role(said["role"]), said["content"]) for said in chat_history if said["role"] != "system"]
        begun = "" if add_generation_prompt else messages.pop().content
        try:
            ids = self._encoder.prompt_ids(messages, system)
        except DropRecord as reason:
            raise UserError(f"a question of --tasks cannot be asked with --apply-chat-template: {reason}") from None
        return self._text.decode(ids) + begun

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, nats, in windows of as many tokens as the model has positions."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            for window in get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1):
                windows.append(((text, ""), *make_disjoint_window(window)))
                owners.append(number)
        totals = np.zeros(len(requests))
        np.add.at(totals, owners, [total for total, _ in self._loglikelihood_tokens(windows)])
        return totals.tolist()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each text until one of its stop sequences, which is not part of the answer."""
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        answers = [""] * len(requests)
        for numbers in alike.values():
            texts = self._continue([requests[number].args[0] for number in numbers], requests[numbers[0]].args[1])
            for number, text in zip(numbers, texts, strict=True):
                answers[number] = text
        return answers

    def _continue(self, contexts: Sequence[str], options: dict[str, Any]) -> list[str]:
        options = dict(normalize_gen_kwargs(options, _MAX_GEN_TOKS))
        until = [text for text in options.pop("until", None) or [] if text]
        length, temperature = options.pop("max_gen_toks"), options.pop("temperature", 0.0)
        options.pop("do_sample", None)
        sampling = Sampling(length, temperature, **{name: options.pop(name) for name in _SAMPLING if name in options})
        if options:
            raise UserError(f"a task of --tasks wants answers with {', '.join(options)}, which generate does not know")
        room = self.max_length - length
        if room < 1:
            raise UserError(f"a task of --tasks wants answers of {length} tokens, all that the model has positions for")
        prompts = [self.tok_encode(context) or [self.prefix_token_id] for context in contexts]
        self.shortened += sum(len(prompt) > room for prompt in prompts)
        prompts = [prompt[-room:] for prompt in prompts]
        tail = max((len(text.encode()) for text in until), default=0) + 1  # tokens that a stop sequence lies in

        def ends(ids: Sequence[int]) -> bool:
            text = self._text.decode(ids[-tail:])
            return any(stop in text for stop in until)

        stop_ids = [*self._encoder.stop_ids, self._text.pad_id, self._text.eod_id]
        texts = []
        for ids in answer(self._loaded, prompts, stop_ids, sampling, self._at_once, ends):
            text = self._text.decode(ids, skip_special_tokens=True)
            for stop in until:
                text = text.split(stop)[0]
            texts.append(text)
        return texts

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        samples = [self._sample(context, continuation) for _, context, continuation in requests]
        losses = record_losses(self._loaded, samples, self._seq_length, self._text.pad_id)
        return [
            (-float(loss), bool(learnt == likeliest))
            for loss, learnt, likeliest in zip(losses.sums, losses.learnt, losses.likeliest, strict=True)
        ]

    def _sample(self, context: list[int], continuation: list[int]) -> Sample:
        """Learns the continuation only. As the harness has it, the last token is predicted but not read."""
        ids = np.array(context + continuation, np.int32)
        self.shortened += len(ids) > self.max_length + 1
        labels = ids.copy()
        labels[: len(context)] = IGNORED_LABEL
        ids, labels = ids[-self.max_length - 1 :], labels[-self.max_length - 1 :]
        return Sample(ids, labels)
