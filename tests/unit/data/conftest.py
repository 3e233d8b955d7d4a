"""What most tests of data begin with; a module that needs another one defines its own under that name."""

from __future__ import annotations

from tests.preparing import config, tokenizer, words

__all__ = ["config", "tokenizer", "words"]
