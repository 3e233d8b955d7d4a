"""Pieces of a template in, token ids out; and what special tokens within a message become."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.templates import FilledPiece, NamedToken, Template, Text, Token, TokenId, Turn
from mindspeed_ift.data.tokenizer import Tokenizer

_CACHED_LENGTH = 2048
_CACHED_IDS = 1 << 19
_TEXTS = (str, Text)  # a tuple: the union would be made anew at every look


class PieceEncoder:
    """Encodes pieces with one tokenizer.

    Args:
        template: Where the pieces come from.
        tokenizer: Text -> ids; stop words of the template that it lacks are added, as LLaMA-Factory does.
        escape_special_tokens: Special tokens within a message (``<|im_end|>``, say) are text like any other.

    Raises:
        UserError: The tokenizer lacks a token that the template names.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer, escape_special_tokens: bool = False) -> None:
        self.tokenizer = tokenizer.with_special_tokens(template.stop_words)
        self._escape = escape_special_tokens
        self._known: dict[str | Text, list[int]] = {}
        self._known_ids = 0
        self.special = SpecialTokens(self.tokenizer)
        """Finds special tokens within messages."""
        end = self.tokenizer.token_id(template.stop_words[0]) if template.replace_eos else self.tokenizer.eod_id
        assert end is not None
        self.end_id = end
        """Id of `Token.END`."""
        self.stop_ids = [end, *filter(None, map(self.tokenizer.token_id, template.stop_words))]
        """Ids at which generation stops."""
        self._fixed = {Token.END: [end], Token.BEGIN: [] if tokenizer.bos_id is None else [tokenizer.bos_id]}
        self._template = template

    def encode(self, pieces: Sequence[FilledPiece]) -> list[int]:
        """Ids of pieces, one after the other."""
        return self.joined(pieces, self.encode_all([Turn(list(pieces), [])]))

    def encode_all(self, turns: Iterable[Turn]) -> dict[str | Text, list[int]]:
        """Ids of every distinct piece of text; short ones are remembered, since system prompts come again."""
        if self._known_ids > _CACHED_IDS:
            self._known.clear()
            self._known_ids = 0
        found: dict[str | Text, list[int]] = {}
        missing: list[str | Text] = []
        # A dictionary, not a set, so that the order of a batch does not depend on hashes.
        for piece in dict.fromkeys(piece for turn in turns for piece in _texts(turn)):
            ids = self._known.get(piece)
            if ids is None:
                missing.append(piece)
            else:
                found[piece] = ids
        whole = [piece for piece in missing if not self._is_escaped(piece)] if self._escape else missing
        found.update(zip(whole, self.tokenizer.encode_batch(["".join(piece) for piece in whole])))
        for piece in missing:
            if piece not in found:
                found[piece] = self._encode_escaped(piece)
            if sum(map(len, piece)) <= _CACHED_LENGTH:
                self._known[piece] = found[piece]
                self._known_ids += len(found[piece])
        return found

    def joined(self, pieces: Sequence[FilledPiece], ids: dict[str | Text, list[int]]) -> list[int]:
        """Ids of pieces, one after the other.

        Args:
            pieces: What to join.
            ids: Of those pieces that are text, as `encode_all` returns them.
        """
        joined: list[int] = []
        for piece in pieces:
            if isinstance(piece, _TEXTS):
                joined += ids[piece]
            elif isinstance(piece, NamedToken):
                joined.append(self._named(piece))
            elif isinstance(piece, TokenId):
                joined.append(piece.number)
            else:
                joined += self._fixed[piece]
        return joined

    def holds_special_tokens(self, turns: Iterable[Turn]) -> bool:
        """Whether a message has special tokens in it."""
        stand_in = self.special.stand_in
        for turn in turns:
            for side in (turn.source, turn.target):
                for piece in side:
                    if isinstance(piece, Text) and stand_in(piece.content):
                        return True
        return False

    def _named(self, piece: NamedToken) -> int:
        found = self.tokenizer.token_id(piece.text)
        if found is None:
            raise UserError(
                f"tokenizer {self.tokenizer.path} has no token {piece.text}, which --prompt-type {self._template.name}"
                " writes; choose another template or the model's own tokenizer"
            )
        return found

    def _is_escaped(self, piece: str | Text) -> bool:
        return self._escape and isinstance(piece, Text) and self.special.stand_in(piece.content)

    def _encode_escaped(self, piece: str | Text) -> list[int]:
        """Special tokens of the template are tokens, those of the message text; merges reach over the message's ends
        as they do without."""
        assert isinstance(piece, Text)
        first, last = self.special.last_end(piece.before), self.special.first_start(piece.after)
        plain = piece.before[first:] + piece.content + piece.after[:last]
        return [
            *self.tokenizer.encode(piece.before[:first]),
            *self.tokenizer.encode_plain(plain),
            *self.tokenizer.encode(piece.after[last:]),
        ]


def _texts(turn: Turn) -> Iterator[str | Text]:
    return (piece for side in (turn.source, turn.target) for piece in side if isinstance(piece, _TEXTS))


class SpecialTokens:
    """Finds the special tokens of a tokenizer in text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokens = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, tokens)) or "(?!)")
        # Qwen's all begin with "<|": looking for that first spares the pattern nearly every text.
        self._common = os.path.commonprefix(tokens)

    def stand_in(self, text: str) -> bool:
        """Whether there is one."""
        return self._common in text and self._pattern.search(text) is not None

    def last_end(self, text: str) -> int:
        """Where the last one ends; 0 without one."""
        return max((found.end() for found in self._pattern.finditer(text)), default=0)

    def first_start(self, text: str) -> int:
        """Where the first one starts; the length without one."""
        found = self._pattern.search(text)
        return found.start() if found else len(text)
