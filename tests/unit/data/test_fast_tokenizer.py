"""The fast encoder gives the ids of Hugging Face's tokenizers, or is not used."""

from __future__ import annotations

import hashlib
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data import fast_tokenizer, workers
from mindspeed_ift.data.fast_tokenizer import edge_texts
from mindspeed_ift.data.preprocess import preprocess
from mindspeed_ift.data.tokenizer import Tokenizer, load_tokenizer
from tests.random_examples import some
from tests.shared_paths import SHARED
from tests.tiny_tokenizer import make_tiny_tokenizer

needs_package = pytest.mark.skipif(
    not fast_tokenizer.is_installed(), reason="gigatoken is not installed (extra [fast] of mindspeed-ift)"
)
# Those of Qwen's vocabulary, and what is nearly one of them.
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "<|im_", "|>", "<think")
PIECES = st.one_of(
    st.sampled_from([*SPECIAL, *edge_texts([])]),
    st.sampled_from(["'s", "'RE", "ſ", "\r\n", " \n", "  ", "123", "e\u0301", "\u1100\u1161\u11a8", "\u0334\u0301"]),
    st.text(),
    st.text(st.characters(max_codepoint=0x2FF, exclude_categories=["Cs"])),
    st.text(st.characters(categories=["Mn", "Mc", "Lo", "Nd", "Cn"])),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def exact(folder: Path) -> Tokenizer:
    return load_tokenizer(SHARED / "tokenizer" / "qwen3" if SHARED else folder)


@pytest.fixture(scope="module")
def fast(exact: Tokenizer) -> Tokenizer:
    tokenizer = load_tokenizer(exact.path)
    encoder = tokenizer.use_fast()
    assert encoder.proven > 50 and encoder.difference is None
    return tokenizer


def assert_same(fast: Tokenizer, exact: Tokenizer, texts: list[str]) -> None:
    for text, found, expected in zip(texts, fast.encode_batch(texts), exact.encode_batch(texts), strict=True):
        assert found == expected, text.encode("unicode_escape")


@needs_package
@some(100)
@given(texts=st.lists(st.lists(PIECES, max_size=8).map("".join), max_size=6))
def test_random_texts(exact: Tokenizer, fast: Tokenizer, texts: list[str]) -> None:
    assert_same(fast, exact, texts)
    assert [fast.encode(text) for text in texts[:1]] == exact.encode_batch(texts[:1])


@needs_package
def test_every_mark_is_put_in_the_same_order(exact: Tokenizer, fast: Tokenizer) -> None:
    """Marks that are newer than the tables of `tokenizers` included: those are left to it."""
    planes = [*range(0x300, 0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE1000)]
    marks = [chr(code) for code in planes if unicodedata.category(chr(code)) in ("Mn", "Mc", "Me", "Cn")]
    assert len(marks) > 40_000
    assert_same(fast, exact, [f"{mark}\u0334" for mark in marks])


@needs_package
@pytest.mark.parametrize(
    "text",
    [
        "\U00011935\U00011930",
        "\U000105d2\u0307",
        "\U00011382\U000113c9",
        "\U0001611e\U0001611e",
        "\U00016d67\U00016d67",
    ],
)
def test_newer_characters_that_join(exact: Tokenizer, fast: Tokenizer, text: str) -> None:
    assert_same(fast, exact, [text, f"a{text} plain", "plain"])


@needs_package
def test_special_tokens_that_a_template_adds(exact: Tokenizer, fast: Tokenizer) -> None:
    texts = ["one<|mine|>two<|im_end|>", "<|mine|", "plain"]
    more, exactly = (tokenizer.with_special_tokens(["<|mine|>"]) for tokenizer in (fast, exact))
    assert_same(more, exactly, texts)
    assert more.fast is not None and exact.vocab_size in more.encode(texts[0])
    assert fast.encode_plain("a<|im_end|>") == exact.encode_plain("a<|im_end|>") != exact.encode("a<|im_end|>")


@needs_package
def test_its_memory_is_bounded(exact: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(exact.path)
    encoder = tokenizer.use_fast()
    before = encoder._fast
    words = "words " * 12_000
    for _ in range(3):
        tokenizer.encode(words)
    assert encoder._fast is before
    monkeypatch.setattr(fast_tokenizer, "_MOST_GROWTH", -(1 << 40))
    tokenizer.encode(words)
    assert encoder._fast is not before
    assert tokenizer.encode(words) == exact.encode(words)


@pytest.fixture
def config(tmp_path: Path, folder: Path) -> PreprocessConfig:
    lines = "".join(
        f'{{"instruction": "question {number}", "input": "", "output": "answer {number} <|im_end|> é\\u0334"}}\n'
        for number in range(30)
    )
    (tmp_path / "in.jsonl").write_text(lines, encoding="utf-8")
    return PreprocessConfig(
        input=str(tmp_path / "in.jsonl"),
        output_prefix=str(tmp_path / "out" / "data"),
        tokenizer_name_or_path=str(folder),
        prompt_type="qwen3",
    )


def prepare(config: PreprocessConfig, name: str) -> tuple[list[str], list[str]]:
    """Lines that were told besides the records' form and the certificate, and the digests of what was written."""
    told: list[str] = []
    place = Path(config.output_prefix).with_name(name)
    preprocess(replace(config, output_prefix=str(place / "data")), report=told.append)
    told = [line for line in told if not line.startswith(("first ", "template certificate"))]
    return told, [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(place.glob("*document.*"))]


@needs_package
def test_the_same_dataset(config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CHUNK", 7)
    expected = prepare(replace(config, tokenizer_backend="hf"), "hf")
    assert expected[0] == []
    assert prepare(replace(config, tokenizer_backend="fast"), "fast") == expected
    assert prepare(replace(config, tokenizer_backend="auto", workers=2), "auto") == expected


def change_ids(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """Make the package give another id for texts with a word in them."""
    import gigatoken

    class Wrong(gigatoken.Tokenizer):
        def encode_batch_list(self, texts: list[str], parallel: bool) -> list[list[int]]:
            found = super().encode_batch_list(texts, parallel=parallel)
            return [[0, *ids] if word in text else ids for text, ids in zip(texts, found)]

    monkeypatch.setattr(gigatoken, "Tokenizer", Wrong)


@needs_package
@pytest.mark.parametrize("backend", ["auto", "fast"])
@pytest.mark.parametrize("word", ["answer 3", "o'clock"])
def test_one_line_where_the_ids_differ(
    config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch, backend: str, word: str
) -> None:
    """On the first records, or on the edge cases."""
    _, expected = prepare(replace(config, tokenizer_backend="hf"), "hf")
    change_ids(monkeypatch, word)
    for count in (1, 2):
        told, found = prepare(replace(config, tokenizer_backend=backend, workers=count), f"other{count}")
        assert found == expected
        assert len(told) == 1 and "gigatoken gives other ids than tokenizers for" in told[0] and word in told[0]


@needs_package
def test_one_line_where_it_does_not_take_the_tokenizer(
    config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gigatoken

    def refuse(definition: str) -> None:
        raise RuntimeError("no such normalizer\nat line 1")

    monkeypatch.setattr(gigatoken.Tokenizer, "from_json", refuse)
    told, _ = prepare(config, "auto")
    assert len(told) == 1 and "gigatoken does not take the tokenizer (no such normalizer)" in told[0]
    with pytest.raises(
        UserError, match=r"does not take the tokenizer \(no such normalizer\); give --tokenizer-backend"
    ):
        prepare(replace(config, tokenizer_backend="fast"), "fast")


def test_not_installed(config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    monkeypatch.setattr(workers, "is_installed", lambda: False)
    told, found = prepare(config, "auto")
    assert not told and found
    with pytest.raises(UserError, match=r"needs the package gigatoken: pip install 'mindspeed-ift\[fast\]'"):
        prepare(replace(config, tokenizer_backend="fast"), "fast")
