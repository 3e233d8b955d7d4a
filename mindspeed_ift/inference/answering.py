"""Questions in, answers on the terminal: all at once, word by word, or as a talk."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mindspeed_ift.data.conversation import Message, Role
from mindspeed_ift.data.encode import Encoder
from mindspeed_ift.inference.decoder import Decoder
from mindspeed_ift.inference.generate import generate
from mindspeed_ift.inference.load import Loaded
from mindspeed_ift.inference.sampling import Sampling


class Answering:
    """A loaded model that is asked in the words of its template.

    All ranks of a layout make the same calls; one of them speaks.

    Args:
        loaded: the model.
        encoder: writes prompts as training wrote them.
        sampling: how tokens are chosen.
        system: system prompt of questions without their own; "" is the template's.
    """

    def __init__(self, loaded: Loaded, encoder: Encoder, sampling: Sampling, system: str) -> None:
        self.loaded, self.encoder, self.sampling, self.system = loaded, encoder, sampling, system
        self.tokenizer = encoder.tokenizer
        self.decoder = Decoder(loaded.model, loaded.groups)
        self.speaks = loaded.groups.rank == 0

    def answer(self, questions: Sequence[dict[str, Any]], at_once: int, *, stream: bool) -> list[str]:
        """Answer and print.

        Args:
            questions: "prompt" and perhaps "system" of each.
            at_once: size of a batch.
            stream: print an answer while it is written; of batches of one.

        Raises:
            UserError: the tokenizer is not the model's; before the first answer.
        """
        messages = [[Message(Role.USER, question["prompt"])] for question in questions]
        prompts = [
            self._prompt_ids(said, question.get("system", self.system))
            for said, question in zip(messages, questions, strict=True)
        ]
        answers: list[str] = []
        for start in range(0, len(prompts), at_once):
            if stream:
                self._say(f"> {questions[start]['prompt']}\n")
            for text in self._generate(prompts[start : start + at_once], stream=stream):
                self._say("\n\n" if stream else f"> {questions[len(answers)]['prompt']}\n{text}\n\n")
                answers.append(text)
        return answers

    def chat(self, lines: Iterable[str]) -> None:
        """Answer line after line, each with all that was said before; ``/new`` forgets it, the end of the lines ends."""
        self._say("ask; /new forgets what was said, Ctrl-D ends\n> ")
        said: list[Message] = []
        for line in self._shared(lines):
            text = line.strip()
            if text == "/new":
                said = []
            elif text:
                said.append(Message(Role.USER, text))
                (answer,) = self._generate([self._prompt_ids(said, self.system)], stream=True)
                said.append(Message(Role.ASSISTANT, answer))
            self._say("\n> ")
        self._say("\n")

    def _prompt_ids(self, messages: Sequence[Message], system: str) -> list[int]:
        prompt = self.encoder.prompt_ids(messages, system)
        self.loaded.require_ids(max(prompt))
        return prompt

    def _generate(self, prompts: list[list[int]], *, stream: bool) -> list[str]:
        tell = self._teller() if stream and self.speaks else None
        stops = [*self.encoder.stop_ids, self.tokenizer.pad_id]
        answers = generate(self.decoder, prompts, stops, self.sampling, tell)
        texts = [self.tokenizer.decode(ids) for ids in answers]
        if tell is not None:
            tell(0, answers[0], whole=True)
        return texts

    def _teller(self) -> Callable[..., None]:
        shown = ""

        def tell(_: int, ids: list[int], *, whole: bool = False) -> None:
            nonlocal shown
            text = self.tokenizer.decode(ids)
            if text.endswith("\ufffd") and not whole:
                return  # in the middle of a character
            self._say(text[len(shown) :])
            shown = text

        return tell

    def _shared(self, lines: Iterable[str]) -> Iterator[str]:
        """Lines of the rank that speaks, on every rank."""
        mine, gather = iter(lines), self.loaded.groups.gather
        while (line := gather(next(mine, None) if self.speaks else None)[0]) is not None:
            yield line

    def _say(self, text: str) -> None:
        if self.speaks:
            sys.stdout.write(text)
            sys.stdout.flush()
