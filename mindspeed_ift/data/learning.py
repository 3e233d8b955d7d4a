"""What messages themselves say of the loss, and thoughts that are not learnt: the weight of each token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mindspeed_ift.data.conversation import Conversation, DropRecord
from mindspeed_ift.data.cutting import Pair
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample
from mindspeed_ift.data.tokenizer import Tokenizer

PROMPT_NOTE = "a prompt asks to be learnt, and is not (see --train-on-prompt)"


class Learning:
    """Gives each token its weight.

    Args:
        tokenizer: To find thoughts among tokens.
        thought: What opens and closes a thought.
        mask_thoughts: Thoughts are not learnt.
        mask_history: Turns are cut from the first one on.
        train_on_prompt: Prompts are learnt too.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        thought: tuple[str, str],
        *,
        mask_thoughts: bool,
        mask_history: bool,
        train_on_prompt: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._opening, self._closing = (re.escape(word.strip()) for word in thought)
        self._mask_thoughts = mask_thoughts
        self._mask_history = mask_history
        self._train_on_prompt = train_on_prompt

    def asks(self, conversation: Conversation) -> bool:
        """Whether tokens have other weights than their labels say."""
        return self._mask_thoughts or any(message.weight is not None for message in conversation.messages)

    def notes(self, conversation: Conversation) -> tuple[str, ...]:
        """Rows of the ledger."""
        asked = not self._train_on_prompt and any(message.weight for message in conversation.messages[::2])
        return (PROMPT_NOTE,) if asked else ()

    def weights(
        self, whole: Sequence[Pair], kept: Sequence[Pair], conversation: Conversation, efficient_eos: bool
    ) -> np.ndarray:
        """The weight of each token of the turns that are kept, and at the end the weight of what closes the sample.

        Args:
            whole: Tokens of the turns before they were cut.
            kept: After it; the first of the turns, with ``mask_history`` the last.
            conversation: What its messages say.
            efficient_eos: The first token of a prompt learns the end of the answer before it.

        Returns:
            float32 ``[sum of lengths + 1]``.

        Raises:
            DropRecord: Messages and turns do not stand side by side.
        """
        said = [1.0 if message.weight is None else message.weight for message in conversation.messages]
        if not self._mask_history and 2 * len(whole) != len(said):
            if any(message.weight is not None for message in conversation.messages):
                raise DropRecord("the template does not write each answer by itself, so its weight has no place")
            said = [1.0] * (2 * len(whole))
        said = said[-2 * len(whole) :]
        first = len(whole) - len(kept) if self._mask_history else 0
        parts, before = [], 1.0
        for number, (source, target) in enumerate(kept, first):
            prompt, answer = said[2 * number : 2 * number + 2]
            weights = np.full(len(source), prompt, np.float32)
            if efficient_eos and not self._train_on_prompt:
                weights[:1] = before
            parts += [weights, self._of_answer(whole[number][1], answer)[: len(target)]]
            before = answer
        return np.concatenate([*parts, np.array([before], np.float32)])

    def thoughts(self, ids: Sequence[int]) -> np.ndarray:
        """Which tokens of an answer are thought, what parts it from the answer included: bool ``[n]``.

        A thought may begin in the prompt; the end of one that the text has no end of is that of the text.
        """
        found = np.zeros(len(ids), bool)
        text = self._tokenizer.decode(ids)
        for start, end in self._spans(text):
            found[self._token_at(ids, start, text) : self._token_at(ids, end, text)] = True
        return found

    def _of_answer(self, ids: Sequence[int], weight: float) -> np.ndarray:
        weights = np.full(len(ids), weight, np.float32)
        if self._mask_thoughts:
            weights[self.thoughts(ids)] = 0
        return weights

    def _spans(self, text: str) -> list[tuple[int, int]]:
        pattern = f"{self._opening}.*?(?:{self._closing}\\s*|$)"
        begun = re.match(f"(?:(?!{self._opening}).)*?{self._closing}\\s*", text, re.DOTALL)
        start = begun.end() if begun else 0
        return ([begun.span()] if begun else []) + [
            found.span() for found in re.compile(pattern, re.DOTALL).finditer(text, start)
        ]

    def _token_at(self, ids: Sequence[int], place: int, text: str) -> int:
        """The number of tokens that lie wholly before a place of their text."""
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._tokenizer.decode(ids[:middle])) <= place:
                low = middle
            else:
                high = middle - 1
        return low


def plain_weights(labels: np.ndarray) -> np.ndarray:
    """The weights of labels that all count alike: float32 ``[n]``, 1 where one is learnt, else 0."""
    return (labels != IGNORED_LABEL).astype(np.float32)


def weighed(sample: Sample, weights: np.ndarray) -> Sample:
    """The sample with labels only where there is weight, and with the weights if they are not all 0 or 1.

    Args:
        sample: Its labels as if all weights were 1.
        weights: float32 ``[m]`` as `Learning.weights` gives them; the last stands for all further tokens.
    """
    count = len(sample)
    if count >= len(weights):
        weights = np.concatenate([weights[:-1], np.full(count - len(weights) + 1, weights[-1], np.float32)])
    learnt = (sample.labels != IGNORED_LABEL) & (weights[:count] > 0)
    labels = np.where(learnt, sample.labels, np.int32(IGNORED_LABEL))
    shares = np.where(learnt, weights[:count], np.float32(0))
    plain = np.isin(shares, (0, 1)).all()
    return replace(sample, labels=labels, loss_weights=None if plain else shares)
