"""Random conversations in every template: the text comes back, answers and nothing else are learnt, workers change no byte.

See tests/random_examples.py for how many, and which.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mindspeed_ift.config.data import PreprocessConfig
from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data import workers
from mindspeed_ift.data.conversation import Conversation, Message, Role
from mindspeed_ift.data.encode import CUT_NOTE, SPLIT_NOTE, Encoded, EncodeOptions, Encoder
from mindspeed_ift.data.preprocess import preprocess
from mindspeed_ift.data.sample import IGNORED_LABEL
from mindspeed_ift.data.template_choice import get_template, make_encoder
from mindspeed_ift.data.template_table import TEMPLATES
from mindspeed_ift.data.tokenizer import Tokenizer, load_tokenizer
from tests.random_examples import some
from tests.tiny_tokenizer import make_tiny_tokenizer

KINDS = [
    (name, thinking)
    for name, template in TEMPLATES.items()
    for thinking in (("none", "true", "false") if template.thinking else ("none",))
]
in_every_template = pytest.mark.parametrize(("name", "thinking"), KINDS)
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


@cache
def tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return load_tokenizer(make_tiny_tokenizer(folder))


def encoder(name: str, **options: Any) -> Encoder:
    return make_encoder(get_template(name), tokenizer(), EncodeOptions(**options))


def composed(text: str) -> str:
    """As Qwen's tokenizer reads it; a mark in front would join what the template has there."""
    text = unicodedata.normalize("NFC", text)
    return text if not text or not unicodedata.combining(text[0]) else "." + text


ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30).map(composed)
WITHOUT_THOUGHTS = ANY_TEXT.map(lambda text: composed(text.replace("think>", "").lstrip("\n")))
"""Thoughts are taken out and put in by rules of their own, and with them line breaks in front of the answer."""
ASKED = st.text("αβγδεζηθικλ ΑΒΓ 0123\n", min_size=1, max_size=30)
ANSWERED = st.text("абвгдежзик АБВ 456\n.", max_size=30)


@st.composite
def conversations(draw: st.DrawFn, asked: st.SearchStrategy[str], answered: st.SearchStrategy[str]) -> Conversation:
    messages: list[Message] = []
    for turn in range(draw(st.integers(1, 4))):
        observes = bool(turn) and draw(st.booleans())
        messages += [Message(Role.OBSERVATION if observes else Role.USER, draw(asked))]
        messages += [Message(Role.ASSISTANT, draw(answered))]
    return Conversation(tuple(messages), draw(st.just("") | asked))


@in_every_template
@some(40)
@given(conversation=conversations(ANY_TEXT, WITHOUT_THOUGHTS))
def test_decoding_gives_the_text_back(name: str, thinking: str, conversation: Conversation) -> None:
    found = encoder(name, enable_thinking=thinking)
    turns = found.turn_ids(conversation)
    closing = found.tokenizer.decode(found.turn_end_ids())
    assert len(turns) == len(conversation.messages) // 2
    for number, (source, target) in enumerate(turns):
        prompt, answer = (message.content for message in conversation.messages[2 * number : 2 * number + 2])
        asked, answered = found.tokenizer.decode(source), found.tokenizer.decode(target)
        assert prompt in asked
        assert number or conversation.system in asked
        opening = EMPTY_THOUGHT if thinking == "true" else ""
        # GLM's answers begin on a line of their own.
        assert answered.removeprefix("\n" if name == "glm4" else "") == opening + answer + closing
        assert asked.endswith(EMPTY_THOUGHT) == (TEMPLATES[name].thinking and thinking != "true")


@in_every_template
@some(40)
@given(
    conversation=conversations(ASKED, ANSWERED),
    mask_history=st.booleans(),
    train_on_prompt=st.booleans(),
    append_eod=st.booleans(),
)
def test_labels_cover_exactly_the_answers(
    name: str, thinking: str, conversation: Conversation, **options: bool
) -> None:
    try:
        found = encoder(name, enable_thinking=thinking, **options)
    except UserError:
        assume(False)
    (encoded,) = found.encode([conversation])
    assert isinstance(encoded, Encoded)
    ids, labels = encoded.sample.input_ids, encoded.sample.labels
    answers = [message.content for message in conversation.messages[1::2]]
    history = "".join(answers[:-1]) if options["mask_history"] else ""
    learnt = labels == ids
    assert cyrillic(decoded(found, ids[learnt])) == cyrillic("".join(answers)[len(history) :])
    assert cyrillic(decoded(found, ids[~learnt])) == cyrillic(history)
    if not options["train_on_prompt"]:
        assert not greek(decoded(found, ids[learnt]))
    # Where no token closes an answer, the first position of the next prompt learns that it is over.
    ends = (labels != IGNORED_LABEL) & ~learnt
    unclosed = TEMPLATES[name].efficient_eos and not options["train_on_prompt"]
    assert np.count_nonzero(ends) == (len(answers) - 1 if unclosed else 0)
    assert set(labels[ends]) <= {found.end_id}
    assert learnt[-1], "the end of the last answer"


@in_every_template
@some(30)
@given(conversation=conversations(ASKED, ANSWERED), room=st.integers(40, 250), append_eod=st.booleans())
def test_split_conversations_lose_nothing(
    name: str, thinking: str, conversation: Conversation, room: int, append_eod: bool
) -> None:
    """Each sample fits and has the system prompt; together they hold every turn once, in order, and learn each answer."""
    found = encoder(name, enable_thinking=thinking, append_eod=append_eod, overlong="split", room=room)
    (encoded,) = found.encode([conversation])
    assert isinstance(encoded, Encoded) and all(len(sample) <= room for sample in encoded.samples)
    if CUT_NOTE in encoded.notes:
        assert encoded.cut_tokens > 0
        return
    assert encoded.cut_tokens == 0 and (SPLIT_NOTE in encoded.notes) == (len(encoded.samples) > 1)
    asked = answered = ""
    for sample in encoded.samples:
        learnt = sample.labels == sample.input_ids
        asked += greek(decoded(found, sample.input_ids[~learnt])).removeprefix(greek(conversation.system))
        answered += cyrillic(decoded(found, sample.input_ids[learnt]))
    assert asked == greek("".join(message.content for message in conversation.messages[::2]))
    assert answered == cyrillic("".join(message.content for message in conversation.messages[1::2]))


def decoded(found: Encoder, ids: np.ndarray) -> str:
    return found.tokenizer.decode(ids.tolist())


def cyrillic(text: str) -> str:
    return "".join(letter for letter in text if "Ѐ" <= letter <= "ӿ")


def greek(text: str) -> str:
    return "".join(letter for letter in text if "Ͱ" <= letter <= "Ͽ")


@in_every_template
@some(40)
@given(
    conversation=conversations(ASKED, ANSWERED),
    cutoff=st.integers(2, 120),
    limit=st.none() | st.integers(8, 120),
    mask_history=st.booleans(),
)
def test_a_cut_sample_is_a_part_of_the_whole_one(
    name: str, thinking: str, conversation: Conversation, cutoff: int, limit: int | None, mask_history: bool
) -> None:
    options = {"enable_thinking": thinking, "mask_history": mask_history}
    whole = encoder(name, **options).encode([conversation])[0]
    found = encoder(name, **options, cutoff=cutoff, limit=limit, cut_to_limit=True)
    cut = found.encode([conversation])[0]
    assert isinstance(whole, Encoded) and isinstance(cut, Encoded)
    ids, labels = cut.sample.input_ids, cut.sample.labels
    assert len(ids) == len(labels) <= cutoff + TEMPLATES[name].efficient_eos
    assert limit is None or len(ids) < limit
    assert set(labels[labels != ids]) <= {IGNORED_LABEL, found.end_id}
    left = iter(whole.sample.input_ids.tolist())
    assert all(token in left for token in ids.tolist()), "tokens that the whole has not, or in another order"


PACKING = [{}, {"pack": True, "seq_length": 160}, {"pack": True, "neat_pack": True, "seq_length": 160}]


def files_of(records: list[dict[str, Any]], chunk: int, **options: Any) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "CHUNK", chunk)
        Path(folder, "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        config = PreprocessConfig(
            input=str(Path(folder, "in.jsonl")),
            output_prefix=str(Path(folder, "data")),
            tokenizer_name_or_path=str(make_tiny_tokenizer(Path(folder, "tokenizer"))),
            **options,
        )
        preprocess(config, report=lambda line: None)
        return {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(Path(folder).glob("data_*_document.*"))
        }


RECORDS = st.lists(
    st.fixed_dictionaries(
        {"instruction": st.text("ab\n ", min_size=1, max_size=9), "output": st.text("cd\n", max_size=9)}
    ),
    min_size=3,
    max_size=12,
)


@pytest.mark.parametrize("packing", PACKING, ids=["not packed", "packed", "neatly packed"])
@some(12)
@given(records=RECORDS, kind=st.sampled_from(KINDS), chunk=st.integers(1, 5))
def test_shares_of_the_work_change_no_byte(
    packing: dict[str, Any], records: list[dict[str, Any]], kind: tuple[str, str], chunk: int
) -> None:
    options = {**packing, "prompt_type": kind[0], "enable_thinking": kind[1]}
    assert files_of(records, chunk, **options) == files_of(records, 500, **options)


@pytest.mark.parametrize("packing", PACKING, ids=["not packed", "packed", "neatly packed"])
@some(1)
@given(records=RECORDS, kind=st.sampled_from(KINDS))
def test_workers_change_no_byte(packing: dict[str, Any], records: list[dict[str, Any]], kind: tuple[str, str]) -> None:
    options = {**packing, "prompt_type": kind[0], "enable_thinking": kind[1]}
    one = files_of(records, 2, workers=1, **options)
    assert len(one) == 6 and files_of(records, 2, workers=2, **options) == one
    assert files_of(records, 2, workers=3, **options) == one
