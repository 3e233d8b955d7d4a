"""Text in, token ids out: a Hugging Face tokenizer folder, loaded in a fraction of a second.

``tokenizer.json`` is read by the `tokenizers` library itself; transformers (seconds to import) is only loaded for a
folder without that file.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from mindspeed_ift.config.errors import UserError, first_line
from mindspeed_ift.data.fast_tokenizer import FastEncoder, exact_ids

if TYPE_CHECKING:
    from mindspeed_ift.data.chat_template import ChatTemplate

_LONGEST_DAMAGE = 8
_SPECIAL = ("eos_token", "pad_token", "bos_token", "unk_token", "sep_token", "cls_token", "mask_token")
_OF_A_TOKENIZER = ("*token*", "*vocab*", "*.model", "config.json")


class Tokenizer:
    """Token ids of text, and the ids of the special tokens.

    Args:
        path: Folder of the tokenizer.
        backend: ``tokenizers.Tokenizer``.
        special: ``eos_token``, ``pad_token``, ``bos_token`` and the like -> text of the token, or None.
        trust_remote_code: Whether transformers may run code of the folder.
    """

    def __init__(
        self, path: Path, backend: Any, special: dict[str, str | None], trust_remote_code: bool = False
    ) -> None:
        self.path = path
        """Folder of the tokenizer."""
        self._backend = backend
        self._special = special
        self.trusts_remote_code = trust_remote_code
        """Whether transformers may run code of the folder."""
        self.fast: FastEncoder | None = None
        """Encodes in the place of ``backend``, see `use_fast`."""

    def encode(self, text: str) -> list[int]:
        """Token ids ``[n]`` of a text, without added beginning or end; special tokens within the text are
        recognized."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; as `encode`, faster."""
        if self.fast is not None:
            return self.fast.encode_batch(texts)
        return exact_ids(self._backend, texts)

    def encode_spans(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        """As `encode`, and for each token whether some of its characters lie in one of ``spans``."""
        found = self._backend.encode(text, add_special_tokens=False)
        inside = [any(begin < end and start < stop for begin, stop in spans) for start, end in found.offsets]
        return found.ids, inside

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of token ids."""
        return self._backend.decode([int(token) for token in ids], skip_special_tokens=skip_special_tokens)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text that each of ``ids`` adds; together the text of all. Of tokens that share a character, the last one
        has it and the others are empty."""
        texts: list[str] = []
        before: list[int] = []
        pending: list[int] = []
        for number, token in enumerate(ids, 1):
            pending.append(int(token))
            text = self.decode(before + pending)[len(self.decode(before)) :]
            # Wait for the rest of a character, unless this is the replacement character itself or damage goes on.
            waits = text.endswith("\ufffd") and len(pending) < _LONGEST_DAMAGE and number < len(ids)
            if waits and self.encode(text) != pending:
                texts.append("")
                continue
            texts.append(text)
            before, pending = pending, []
        return texts

    def ids_that_hold(self, character: str) -> list[int]:
        """Ids of the tokens whose text holds a character as a whole."""
        vocabulary = self._backend.get_vocab()
        written = _as_bytes(character)
        return sorted(number for token, number in vocabulary.items() if character in token or written in token)

    def token_id(self, token: str) -> int | None:
        """Id of one token by its text, or None."""
        return self._backend.token_to_id(token)

    def encode_plain(self, text: str) -> list[int]:
        """As `encode`, but special tokens within the text are text."""
        self._backend.encode_special_tokens = True
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        finally:
            self._backend.encode_special_tokens = False

    @property
    def special_tokens(self) -> list[str]:
        """Texts that become special tokens wherever they stand."""
        return [token.content for token in self._backend.get_added_tokens_decoder().values() if token.special]

    def with_special_tokens(self, tokens: Sequence[str]) -> Tokenizer:
        """This tokenizer, with new ids behind the last one for those special tokens that it lacks."""
        missing = [token for token in tokens if token not in self.special_tokens]
        if not missing:
            return self
        backend = copy.deepcopy(self._backend)
        backend.add_special_tokens(missing)
        added = Tokenizer(self.path, backend, self._special, self.trusts_remote_code)
        if self.fast is not None:
            added.use_fast()
        return added

    def use_fast(self) -> FastEncoder:
        """Encode with a `FastEncoder` from now on.

        Raises:
            UserError: It is not installed, or does not take this tokenizer.
        """
        self.fast = FastEncoder(self._definition, self._backend)
        return self.fast

    @property
    def eod_id(self) -> int:
        """Id of the end-of-sequence token.

        Raises:
            UserError: The tokenizer names none.
        """
        return self._required("eos_token")

    @property
    def pad_id(self) -> int:
        """Id of the padding token; the end-of-sequence token where the tokenizer names none."""
        return self._required("pad_token") if self._special.get("pad_token") else self.eod_id

    @property
    def bos_id(self) -> int | None:
        """Id of the beginning-of-sequence token, or None."""
        return self._required("bos_token") if self._special.get("bos_token") else None

    @cached_property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included: ``len(tokenizer)`` of Hugging Face."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def _definition(self) -> str:
        """As tokenizer.json has it."""
        return self._backend.to_str()

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over what decides the ids of a text: equal for folders that encode alike, however they are
        written."""
        state = orjson.loads(self._definition)
        model = state["model"]
        vocabulary = model.get("vocab")
        ordered = sorted(vocabulary.items(), key=lambda item: item[1]) if isinstance(vocabulary, dict) else vocabulary
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
        added = [(token["id"], token["content"]) for token in state["added_tokens"]]
        parts = [ordered, merges, added, state["normalizer"], state["pre_tokenizer"]]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """That of the folder, or None (imports jinja2).

        Raises:
            UserError: A file of the folder cannot be read.
        """
        from mindspeed_ift.data.chat_template import read_chat_template

        special = {name: text for name, text in self._special.items() if text}
        return read_chat_template(self.path, _read_config(self.path), special)

    def _required(self, name: str) -> int:
        text = self._special.get(name)
        found = self._backend.token_to_id(text) if text else None
        if found is None:
            raise UserError(f"tokenizer {self.path} has no {name}; name one in its tokenizer_config.json")
        return found


def _as_bytes(character: str) -> str:
    """A character as byte-level vocabularies write its bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    ((written, _),) = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(character)
    return written


def load_tokenizer(path: str | Path, trust_remote_code: bool = False) -> Tokenizer:
    """Load a tokenizer folder.

    Args:
        path: Folder with tokenizer.json and tokenizer_config.json, or what transformers' AutoTokenizer reads.
        trust_remote_code: Let transformers run code of the folder, where tokenizer.json is missing.

    Raises:
        UserError: No such folder, or it cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(
            f"no tokenizer folder {folder}; give --tokenizer-name-or-path a folder with tokenizer.json"
            " (make-tokenizer builds Qwen3's)"
        )
    file = folder / "tokenizer.json"
    if file.is_file() and not trust_remote_code:
        import tokenizers

        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{file} cannot be read ({error}); copy the tokenizer again") from error
        backend.no_truncation()
        backend.no_padding()
        return Tokenizer(folder, backend, _special_tokens(_read_config(folder)), trust_remote_code)
    loaded = backend = None
    if any(found for pattern in _OF_A_TOKENIZER for found in folder.glob(pattern)):
        loaded = _load_with_transformers(folder, trust_remote_code)
        backend = getattr(loaded, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                f"tokenizer {folder} has no fast form (tokenizer.json); save one with transformers' save_pretrained"
            )
    # Of a config.json alone transformers makes a tokenizer that encodes every text to nothing.
    if backend is None or backend.get_vocab_size() == len(backend.get_added_tokens_decoder()):
        raise UserError(
            f"{folder} holds no tokenizer; give --tokenizer-name-or-path a folder with tokenizer.json (make-tokenizer"
            " builds Qwen3's)"
        )
    return Tokenizer(folder, backend, {name: getattr(loaded, name, None) for name in _SPECIAL}, trust_remote_code)


def _read_config(folder: Path) -> dict[str, Any]:
    """What the files beside tokenizer.json say, as far as they say something."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = folder / name
        if file.is_file():
            try:
                config.update(
                    {key: value for key, value in json.loads(file.read_text(encoding="utf-8")).items() if value}
                )
            except (ValueError, AttributeError) as error:
                raise UserError(f"{file} is not a JSON object ({error}); copy the tokenizer again") from error
    return config


def _special_tokens(config: dict[str, Any]) -> dict[str, str | None]:
    tokens = {}
    for name in _SPECIAL:
        value = config.get(name)
        tokens[name] = value.get("content") if isinstance(value, dict) else value
    return tokens


def _load_with_transformers(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"tokenizer {folder} cannot be loaded ({first_line(error)}); it needs tokenizer.json, or --trust-remote-code for"
            " code of its own"
        ) from error
