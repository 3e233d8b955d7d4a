"""Written answers against right ones: exact match, and ROUGE-L, BLEU and chrF as their usual libraries compute them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from mindspeed_ift.config.errors import UserError

# Chinese, Japanese and Korean are written without spaces: each of their characters is a word, as sacreBLEU has it.
_WORDS = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
)
_EAST_ASIAN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")


def words(text: str) -> list[str]:
    """Words of a text in lower case, and single East Asian characters."""
    return _WORDS.findall(text.lower())


def same(answer: str, reference: str) -> bool:
    """Whether two texts are equal but for spaces at their ends and between words, and the form of their characters."""
    return _plain(answer) == _plain(reference)


def score(metric: str, answers: Sequence[str], references: Sequence[str]) -> tuple[float, list[float]]:
    """One metric, from 0 to 100.

    Args:
        metric: "exact_match", "rouge_l", "bleu" or "chrf".
        answers: as written.
        references: right ones, as many.

    Returns:
        Of all answers together (a mean for exact match and ROUGE-L, a corpus score for BLEU and chrF), and of each.

    Raises:
        UserError: its library is not installed.
    """
    return _METRICS[metric](answers, references)


def require(metrics: Sequence[str]) -> None:
    """Refuse a metric whose library is missing, before any work.

    Raises:
        UserError: with the command that installs it.
    """
    for metric in metrics:
        score(metric, ["a"], ["a"])


def _exact_match(answers: Sequence[str], references: Sequence[str]) -> tuple[float, list[float]]:
    each = [100.0 * same(answer, reference) for answer, reference in zip(answers, references, strict=True)]
    return _mean(each), each


class _Words:
    """rouge-score's own words are ASCII only."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def _rouge_l(answers: Sequence[str], references: Sequence[str]) -> tuple[float, list[float]]:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise _missing("rouge_l") from None
    scorer: Any = RougeScorer(["rougeL"], tokenizer=_Words())
    each = [
        100 * scorer.score(reference, answer)["rougeL"].fmeasure
        for answer, reference in zip(answers, references, strict=True)
    ]
    return _mean(each), each


def _bleu(answers: Sequence[str], references: Sequence[str]) -> tuple[float, list[float]]:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise _missing("bleu") from None
    east_asian = sum(map(bool, map(_EAST_ASIAN.search, references))) * 2 > len(references)
    options: dict[str, Any] = {"tokenize": "zh" if east_asian else "13a"}
    each = [
        BLEU(effective_order=True, **options).sentence_score(answer, [reference]).score
        for answer, reference in zip(answers, references, strict=True)
    ]
    return BLEU(**options).corpus_score(list(answers), [list(references)]).score, each


def _chrf(answers: Sequence[str], references: Sequence[str]) -> tuple[float, list[float]]:
    try:
        from sacrebleu.metrics import CHRF
    except ImportError:
        raise _missing("chrf") from None
    metric = CHRF()
    each = [metric.sentence_score(a, [r]).score for a, r in zip(answers, references, strict=True)]
    return metric.corpus_score(list(answers), [list(references)]).score, each


_METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], tuple[float, list[float]]]] = {
    "exact_match": _exact_match,
    "rouge_l": _rouge_l,
    "bleu": _bleu,
    "chrf": _chrf,
}


def _missing(metric: str) -> UserError:
    return UserError(f"--metrics {metric} needs a library that is not installed: pip install 'mindspeed-ift[evaluate]'")


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
