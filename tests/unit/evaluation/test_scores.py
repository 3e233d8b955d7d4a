"""Metrics on answers whose scores are known."""

from __future__ import annotations

import sys

import pytest

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.evaluation.scores import require, same, score, words


def test_words_of_languages_with_and_without_spaces() -> None:
    assert words("The NPU, 910B!") == ["the", "npu", "910b"]
    assert words("昇腾 NPU很快。") == ["昇", "腾", "npu", "很", "快"]
    assert words("Größe naïve") == ["größe", "naïve"]


def test_equal_but_for_spaces_and_forms_of_characters() -> None:
    assert same(" It is\n7. ", "It is 7.") and same("ＡＢ", "AB")
    assert not same("It is 7", "It is 7.") and not same("it", "It")


@pytest.mark.parametrize("metric", ["exact_match", "rouge_l", "bleu", "chrf"])
def test_the_right_answer_has_all_and_another_nothing(metric: str) -> None:
    texts = ["The answer is forty two, as ever.", "答案是四十二，一如既往。"]
    total, each = score(metric, texts, texts)
    assert total == pytest.approx(100) and each == pytest.approx([100, 100])
    assert score(metric, ["zzz", "zzz"], texts)[0] == pytest.approx(0, abs=0.1)


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence() -> None:
    """Of 4 words 3 in order are there, and 1 more: precision 3/4, recall 3/4; in Chinese by character: 2/3, 2/4."""
    total, each = score("rouge_l", ["the big cat sat", "很快乐"], ["the cat sat down", "他很快吗"])
    assert each == pytest.approx([75.0, 100 * 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)])
    assert total == pytest.approx(sum(each) / 2)


def test_a_missing_library_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    require(["exact_match"])
    with pytest.raises(UserError, match=r"--metrics chrf needs a library .*: pip install 'mindspeed-ift\[evaluate\]'"):
        require(["exact_match", "chrf"])
