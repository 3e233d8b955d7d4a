"""Preference pairs: one prompt, two answers."""

from __future__ import annotations

import pytest

from mindspeed_ift.data.conversation import Conversation, DropRecord, Message, PreferencePair, Role
from mindspeed_ift.data.encode import CUT_NOTE, EncodeOptions, Encoder
from mindspeed_ift.data.encode_pairs import EncodedPair, encode_pairs
from mindspeed_ift.data.sample import IGNORED_LABEL, Sample
from mindspeed_ift.data.template_table import TEMPLATES
from mindspeed_ift.data.tokenizer import Tokenizer, load_tokenizer
from tests.tiny_tokenizer import make_tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(make_tiny_tokenizer(tmp_path_factory.mktemp("tiny")))


def pair(chosen: str, rejected: str, *before: str, role: Role = Role.ASSISTANT) -> PreferencePair:
    roles = (Role.USER, Role.ASSISTANT)
    messages = [Message(roles[number % 2], text) for number, text in enumerate(before)]
    return PreferencePair(*(Conversation((*messages, Message(role, text))) for text in (chosen, rejected)))


def encode(
    tokenizer: Tokenizer, one: PreferencePair, template: str = "qwen", **options: object
) -> EncodedPair | DropRecord:
    encoder = Encoder(TEMPLATES[template], tokenizer, EncodeOptions(mask_history=True, **options))
    return encode_pairs(encoder, [one])[0]


def texts(tokenizer: Tokenizer, sample: Sample) -> tuple[str, str]:
    learnt = sample.labels != IGNORED_LABEL
    assert (sample.labels[learnt] == sample.input_ids[learnt]).all()
    return tokenizer.decode(sample.input_ids[~learnt]), tokenizer.decode(sample.labels[learnt])


def test_the_last_answers_are_learnt(tokenizer: Tokenizer) -> None:
    found = encode(tokenizer, pair("good", "bad", "one", "two", "three"), append_eod=True)
    assert isinstance(found, EncodedPair) and found.notes == ()
    prompt, answer = texts(tokenizer, found.chosen)
    assert prompt.endswith(
        "one<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"
    )
    assert answer == "good<|im_end|>"
    assert texts(tokenizer, found.rejected) == (prompt, "bad<|im_end|>")
    assert {name: values.dtype.name for name, (values,) in found.columns.items()} == dict.fromkeys(
        ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels"), "int32"
    )


def test_a_thinking_template_forgets_earlier_thoughts(tokenizer: Tokenizer) -> None:
    found = encode(tokenizer, pair("good", "bad", "q", "<think>\nhm\n</think>\n\na", "r"), "qwen3")
    assert isinstance(found, EncodedPair)
    prompt, answer = texts(tokenizer, found.chosen)
    assert "hm" not in prompt and prompt.endswith("assistant\n<think>\n\n</think>\n\n") and answer == "good<|im_end|>\n"
    assert texts(tokenizer, found.rejected) == (prompt, "bad<|im_end|>\n")


def test_an_end_that_stands_once(tokenizer: Tokenizer) -> None:
    template = next(one for one in TEMPLATES.values() if one.efficient_eos)
    found = encode(tokenizer, pair("good", "bad", "one", "two", "three"), template.name)
    assert isinstance(found, EncodedPair)
    assert [texts(tokenizer, one)[1] for one in (found.chosen, found.rejected)] == ["good<|im_end|>", "bad<|im_end|>"]


def test_prompt_and_answers_are_cut_in_proportion(tokenizer: Tokenizer) -> None:
    whole = encode(tokenizer, pair("a b " * 30, "c", "x y " * 30), "qwen3_nothink")
    found = encode(tokenizer, pair("a b " * 30, "c", "x y " * 30), "qwen3_nothink", cutoff=60)
    assert isinstance(found, EncodedPair) and isinstance(whole, EncodedPair)
    assert found.notes == (CUT_NOTE,) and len(found.chosen) == 60
    prompt = int((found.chosen.labels == IGNORED_LABEL).sum())
    assert (found.rejected.labels == IGNORED_LABEL).sum() == prompt
    assert len(found.rejected) - prompt == (whole.rejected.labels != IGNORED_LABEL).sum()


def test_earlier_rules_cut_each_conversation_turn_by_turn(tokenizer: Tokenizer) -> None:
    """As LLaMA-Factory 0.8.2: each answer gets its share of what the turns before leave, and the better one's prompt."""
    one = pair("a b " * 30, "c", "x " * 10, "y " * 10, "z " * 20)
    whole = encode(tokenizer, one, "default")
    found = encode(tokenizer, one, "default", cutoff=120)
    assert isinstance(found, EncodedPair) and isinstance(whole, EncodedPair)
    (question, reply), (source, answer) = Encoder(TEMPLATES["default"], tokenizer, EncodeOptions()).turn_ids(one.chosen)
    room = 120 - len(question) - len(reply)
    learnt = int(room * len(answer) / (len(source) + len(answer)))
    assert found.chosen.input_ids.tolist() == [*question, *reply, *source[: room - learnt], *answer[:learnt]]
    prompt = 120 - learnt
    assert found.rejected.input_ids[:prompt].tolist() == found.chosen.input_ids[:prompt].tolist()
    assert texts(tokenizer, found.rejected)[1] == texts(tokenizer, whole.rejected)[1]
    assert found.notes == (CUT_NOTE,)


def test_an_end_that_stands_once_is_not_cut_by_earlier_rules(tokenizer: Tokenizer) -> None:
    found = encode(tokenizer, pair("good " * 30, "bad " * 30, "one"), "empty", cutoff=20)
    assert isinstance(found, EncodedPair)
    for sample in (found.chosen, found.rejected):
        assert len(sample) == 21 and tokenizer.decode(sample.labels[-1:]) == "<|im_end|>"


def test_a_pair_whose_last_turn_does_not_begin_is_left_out(tokenizer: Tokenizer) -> None:
    """LLaMA-Factory 0.8.2 would learn an earlier answer as the better and as the worse one."""
    found = encode(tokenizer, pair("good", "bad", "one " * 20, "two " * 20, "three"), cutoff=20)
    assert isinstance(found, DropRecord) and not found.malformed and "last turn" in str(found)


def test_a_pair_is_dropped_if_one_answer_is_too_long(tokenizer: Tokenizer) -> None:
    for one in (pair("long " * 50, "short", "q"), pair("short", "long " * 50, "q")):
        found = encode(tokenizer, one, limit=60)
        assert isinstance(found, DropRecord) and "60 tokens or more" in str(found)


def test_a_call_that_cannot_be_written_drops_the_pair(tokenizer: Tokenizer) -> None:
    found = encode(tokenizer, pair('{"name": "f", "arguments": {}}', "no call", "q", role=Role.FUNCTION), "qwen3")
    assert isinstance(found, DropRecord) and "is not JSON" in str(found)


def test_thoughts_are_left_out(tokenizer: Tokenizer) -> None:
    found = encode(tokenizer, pair("<think>hm</think>good", "bad", "q"), "qwen3", mask_thoughts=True)
    assert isinstance(found, EncodedPair)
    learnt = [texts(tokenizer, one)[1] for one in (found.chosen, found.rejected)]
    assert learnt == ["good<|im_end|>\n", "bad<|im_end|>\n"]
