"""Texts in, token ids out, many times as fast: the package gigatoken in the place of `tokenizers`, where it is proven.

It reads the same definition, and remembers the ids of words it has seen. Nothing depends on it: a text that it cannot
be trusted with goes to `tokenizers`, and all do where it once gave other ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mindspeed_ift.config.errors import UserError, first_line

PACKAGE = "gigatoken"
_MOST_GROWTH = 64 << 20
_CHARACTERS_BETWEEN_LOOKS = 1 << 16
_PAGE = 4096

_NEWER = re.compile(
    "[\u07fd\u0890-\u089f\u08ca-\u08d3\u09fe\u0c3c\u0d3b\u0d3c\u0eba\u1715\u1abf-\u1aff\u1df6-\u1dfa\ua82c"
    "\U00010500-\U000105ff\U00010d00-\U00011fff\U00016100-\U00016fff\U0001e000-\U0001e7ff]"
)
"""Marks, and characters that join into one, that are newer than Unicode 9, by whose tables `tokenizers` normalizes; the
package has later ones. Of scripts that few write, whole blocks, so that the list is short."""

_WORDS = (
    " plain words, and  two   spaces ",
    "It's we'RE I'll they'd you'VE o'clock '' 's 'S 'ſ",
    "12345 1 23 0.5 1,000,000 3rd x86_64 ²³ Ⅷ ٣٤ ४५ ½",
    "line\nline\r\nline\n\n\n  indented\n\t\ttabs \t \n",
    "def f(x: int) -> str:\n    return f\"{x!r:>10}\"  # ok\n\n\nif __name__ == '__main__': pass",
    'https://example.com/a?b=c&d=%20#e <a href="x">y</a> {"k": [1, null, true]} $\\frac{1}{2}$',
    "你好，世界！这是一个测试。　全角空格１２３ＡＢＣ「引用」……",
    "日本語のテキストとカタカナ、한국어 문장입니다. Привет, мир! مرحبا بالعالم שָׁלוֹם नमस्ते สวัสดี",
    "e\u0301 o\u0308 A\u030a \u212b \u2126 \u1100\u1161\u11a8 \ufb01 \u0958 \u0f71\u0f72 q\u0307\u0323 \u0340",
    "👍🏽 👩‍👩‍👧‍👦 🇨🇳 ❤️ \u2764 \U0001f9d1\u200d\U0001f680 \u200b\u200d\u200e\ufeff\u2060",
    "\x00\x01\x1f\x7f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000 end",
    "\ufffd\uffff\ufdd0\U0010ffff\ue000\U000f0000",
    "a" * 3000,
    " " * 300 + "x" + "\n" * 300,
    "0123456789" * 100,
    "ab" * 700 + "。" * 300 + "哈" * 900,
    "!?" * 400 + "_" * 200 + "=-" * 200,
)


class FastEncoder:
    """Encodes as a ``tokenizers.Tokenizer`` does; on edge cases they are compared at once.

    Args:
        definition: The content of tokenizer.json.
        exact: The tokenizer that it makes.

    Raises:
        UserError: The package is not installed, or does not take this tokenizer.
    """

    def __init__(self, definition: str, exact: Any) -> None:
        self._definition = definition
        self._exact = exact
        self._fast = self._load()
        self._resident: int | None = None
        self._characters = 0
        self.proving = True
        """Compare every text."""
        self.proven = 0
        """How many texts were compared."""
        self.difference: str | None = None
        """The first text of which it gave other ids; from then on all are left to the exact one."""
        self.encode_batch(list(edge_texts(token.content for token in exact.get_added_tokens_decoder().values())))
        self.proving = False

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens within recognized."""
        if self.difference is not None:
            return exact_ids(self._exact, texts)
        ids = self._encode(texts)
        if self.proving:
            expected = exact_ids(self._exact, texts)
            self.proven += len(texts)
            self.difference = next((text for text, a, b in zip(texts, ids, expected) if a != b), None)
            return expected
        self._characters += sum(map(len, texts))
        if self._characters >= _CHARACTERS_BETWEEN_LOOKS:
            self._characters = 0
            self._bound_memory()
        return ids

    def _bound_memory(self) -> None:
        """Drop the memory of words, which has no bound of its own, when this process has grown by much."""
        resident = _resident_bytes()
        if self._resident is None:
            # Of this process, with what a batch takes.
            self._resident = resident
        elif resident - self._resident > _MOST_GROWTH:
            del self._fast
            self._fast = self._load()
            self._resident = None

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        trusted = [text for text in texts if text.isascii() or not _NEWER.search(text)]
        ids = self._fast.encode_batch_list(trusted, parallel=False)
        if len(trusted) == len(texts):
            return ids
        found = dict(zip(trusted, ids))
        others = [text for text in texts if text not in found]
        found.update(zip(others, exact_ids(self._exact, others)))
        return [found[text] for text in texts]

    def _load(self) -> Any:
        try:
            import gigatoken
        except ImportError:
            raise UserError(
                f"--tokenizer-backend fast needs the package {PACKAGE}: pip install 'mindspeed-ift[fast]', or leave the"
                " flag out"
            ) from None
        try:
            return gigatoken.Tokenizer.from_json(self._definition)
        except Exception as error:  # the library's own kinds
            raise UserError(
                f"{PACKAGE} does not take the tokenizer ({first_line(error)}); give --tokenizer-backend hf"
            ) from error


def is_installed() -> bool:
    """Whether the package is there."""
    return find_spec(PACKAGE) is not None


def edge_texts(added_tokens: Iterable[str]) -> Iterator[str]:
    """Texts at which encoders are likely to differ.

    Args:
        added_tokens: Texts that are one token wherever they stand.
    """
    yield from _WORDS
    for token in added_tokens:
        yield from (
            token,
            f"a{token}b",
            f" {token} {token}\n{token}",
            token[:-1],
            f"<{token[1:]}{token}",
            f"é{token}\u0301",
        )


def exact_ids(exact: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text by a ``tokenizers.Tokenizer``."""
    return [encoding.ids for encoding in exact.encode_batch_fast(list(texts), add_special_tokens=False)]


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * _PAGE if statm.exists() else 0
