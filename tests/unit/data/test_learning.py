"""What messages say of the loss, and thoughts that are not learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mindspeed_ift.data.conversation import Conversation, Message, Role
from mindspeed_ift.data.encode import NOTHING_LEARNT_NOTE, Encoded, EncodeOptions, Encoder
from mindspeed_ift.data.learning import PROMPT_NOTE
from mindspeed_ift.data.sample import IGNORED_LABEL
from mindspeed_ift.data.template_table import TEMPLATES
from mindspeed_ift.data.tokenizer import Tokenizer, load_tokenizer
from tests.tiny_tokenizer import make_tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(make_tiny_tokenizer(tmp_path_factory.mktemp("tiny")))


def talk(*texts: str, weights: Sequence[float | None] = ()) -> Conversation:
    roles = (Role.USER, Role.ASSISTANT)
    said = [*weights, *[None] * (len(texts) - len(weights))]
    return Conversation(
        tuple(Message(roles[number % 2], text, weight=said[number]) for number, text in enumerate(texts))
    )


def encode(tokenizer: Tokenizer, conversation: Conversation, template: str = "qwen", **options: object) -> Encoded:
    found = Encoder(TEMPLATES[template], tokenizer, EncodeOptions(**options)).encode([conversation])[0]
    assert isinstance(found, Encoded)
    return found


def learnt(tokenizer: Tokenizer, found: Encoded) -> str:
    labels = found.sample.labels
    return tokenizer.decode(labels[labels != IGNORED_LABEL])


def test_an_answer_that_is_not_learnt_is_read_all_the_same(tokenizer: Tokenizer) -> None:
    plain = encode(tokenizer, talk("one", "two", "three", "four"))
    found = encode(tokenizer, talk("one", "two", "three", "four", weights=(None, 0, None, 1)))
    assert learnt(tokenizer, found) == "four<|im_end|>" and found.sample.loss_weights is None
    np.testing.assert_array_equal(found.sample.input_ids, plain.sample.input_ids)
    nothing = encode(tokenizer, talk("one", "two", weights=(None, 0)))
    assert nothing.notes == (NOTHING_LEARNT_NOTE,)


def test_weights_stand_where_an_answer_is_learnt(tokenizer: Tokenizer) -> None:
    plain = encode(tokenizer, talk("one", "two", "three", "four"), append_eod=True).sample
    found = encode(tokenizer, talk("one", "two", "three", "four", weights=(1, 0.5, 1, 2)), append_eod=True)
    sample = found.sample
    assert sample.loss_weights is not None and sample.loss_weights.dtype == np.float32
    np.testing.assert_array_equal(sample.labels, plain.labels)
    by_weight = {weight: tokenizer.decode(sample.labels[sample.loss_weights == weight]) for weight in (0.5, 2)}
    assert by_weight == {0.5: "two<|im_end|>", 2: "four<|im_end|><|im_end|>"}
    assert (sample.loss_weights[sample.labels == IGNORED_LABEL] == 0).all()
    assert found.notes == (PROMPT_NOTE,)


@pytest.mark.parametrize("room", [24, 40])
@pytest.mark.parametrize("history", [False, True])
def test_weights_are_cut_with_their_tokens(tokenizer: Tokenizer, room: int, history: bool) -> None:
    conversation = talk("one " * 9, "two " * 9, "three", "four " * 5, weights=(None, 0.5, None, 0.25))
    plain = replace(conversation, messages=tuple(replace(one, weight=None) for one in conversation.messages))
    found, expected = (
        encode(tokenizer, one, cutoff=room, mask_history=history).sample for one in (conversation, plain)
    )
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.loss_weights is not None and len(found) == len(found.loss_weights) <= room
    assert set(found.loss_weights[found.labels != IGNORED_LABEL]) <= {0.5, 0.25}
    assert (0.25 in found.loss_weights) or not history


def test_weights_of_a_sample_cut_at_its_end(tokenizer: Tokenizer) -> None:
    conversation = talk("one " * 9, "two " * 9, weights=(None, 0.5))
    sample = encode(tokenizer, conversation, limit=56, cut_to_limit=True).sample
    assert sample.loss_weights is not None and len(sample) == len(sample.loss_weights) == 55


def test_prompts_are_weighed_where_they_are_learnt(tokenizer: Tokenizer) -> None:
    found = encode(tokenizer, talk("one", "two", "three", "four", weights=(0,)), train_on_prompt=True)
    assert (
        learnt(tokenizer, found)
        == "two<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\nfour<|im_end|>"
    )


def test_the_end_of_an_answer_learnt_by_the_next_prompt_weighs_as_the_answer(tokenizer: Tokenizer) -> None:
    template = next(one for one in TEMPLATES.values() if one.efficient_eos)
    plain = encode(tokenizer, talk("one", "two", "three", "four"), template.name).sample
    found = encode(tokenizer, talk("one", "two", "three", "four", weights=(None, 0)), template.name).sample
    kept = plain.labels != found.labels
    assert tokenizer.decode(plain.labels[kept]).startswith("two") and kept.sum() == len(tokenizer.encode("two")) + 1


THOUGHT = "<think>\nhm, 你好\n</think>\n\nsaid 你好"


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (THOUGHT, "said 你好<|im_end|>"),
        ("before " + THOUGHT, "before said 你好<|im_end|>"),
        ("hm</think>said", "said<|im_end|>"),
        ("said", "said<|im_end|>"),
        ("<think>a</think>b<think>c</think>d", "bd<|im_end|>"),
        ("<think>endless", ""),
    ],
)
def test_thoughts_are_left_out(tokenizer: Tokenizer, answer: str, kept: str) -> None:
    plain = encode(tokenizer, talk("q", answer))
    found = encode(tokenizer, talk("q", answer), mask_thoughts=True)
    assert learnt(tokenizer, found) == kept
    np.testing.assert_array_equal(found.sample.input_ids, plain.sample.input_ids)
    assert learnt(tokenizer, plain) == answer + "<|im_end|>"


def test_a_thought_that_is_cut_stays_a_thought(tokenizer: Tokenizer) -> None:
    found = encode(tokenizer, talk("q", "<think>" + "hm " * 40 + "</think>a"), mask_thoughts=True, cutoff=40)
    assert len(found.sample) == 40 and learnt(tokenizer, found) == ""


def test_empty_thoughts_of_the_template_are_thoughts(tokenizer: Tokenizer) -> None:
    options = {"enable_thinking": "true", "mask_thoughts": True}
    assert learnt(tokenizer, encode(tokenizer, talk("q", "a"), "qwen3", **options)) == "a<|im_end|>\n"


def test_thoughts_without_tokens_of_their_own(tmp_path: Path) -> None:
    """A tokenizer that writes <think> in pieces."""
    folder = make_tiny_tokenizer(tmp_path)
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"<think>"', '"<th1nk>"').replace('"</think>"', '"</th1nk>"'))
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer.encode("<think>")) > 1
    assert learnt(tokenizer, encode(tokenizer, talk("q", THOUGHT), mask_thoughts=True)) == "said 你好<|im_end|>"
