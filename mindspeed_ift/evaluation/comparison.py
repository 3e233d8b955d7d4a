"""One model, or two to compare, measured on held-out records and benchmarks: figures, answers, a page."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.config.evaluation import FRESH, EvaluateConfig
from mindspeed_ift.data.encode import Encoder
from mindspeed_ift.data.reading import open_conversations
from mindspeed_ift.data.staging import write_text
from mindspeed_ift.evaluation.answers import answer
from mindspeed_ift.evaluation.benchmarks import open_tasks, run_tasks
from mindspeed_ift.evaluation.losses import record_losses
from mindspeed_ift.evaluation.records import Item, make_items
from mindspeed_ift.evaluation.scores import require, score
from mindspeed_ift.inference.asking import make_asking_encoder
from mindspeed_ift.inference.load import Loaded, load
from mindspeed_ift.inference.sampling import Sampling
from mindspeed_ift.parallel import groups as process_groups

_PAGE = Path(__file__).with_name("page.html.j2")


@dataclass
class Measured:
    """What one model came to.

    Attributes:
        name: its folder, or that its weights are fresh.
        losses: mean loss of each record over its learnt tokens, nats; NaN where nothing is learnt.
        figures: name -> figure of all records, or of a benchmark.
        answers: greedy, one a record; empty if none were asked for.
        scores: metric -> score of each record.
    """

    name: str
    losses: list[float]
    figures: dict[str, float]
    answers: list[str] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Comparison:
    """The records, if any, and what each model came to: the baseline first, if there is one.

    Attributes:
        items: records that were measured.
        left_out: reason -> number of records that could not be.
        learnt_tokens: in all items.
        models: one or two.
    """

    items: list[Item]
    left_out: Counter[str]
    learnt_tokens: int
    models: list[Measured]

    def as_dict(self) -> dict[str, Any]:
        """All of it in plain values, for JSON."""
        return {
            "records": len(self.items),
            "left_out": dict(self.left_out),
            "learnt_tokens": self.learnt_tokens,
            "models": [{"name": model.name, **model.figures} for model in self.models],
            "items": [
                {
                    "origin": item.origin,
                    "question": item.question,
                    "reference": item.reference,
                    "models": [_of_item(model, number) for model in self.models],
                }
                for number, item in enumerate(self.items)
            ],
        }

    def better(self) -> int:
        """Records whose loss is lower with the second model than with the first."""
        before, after = self.models
        return sum(new < old for old, new in zip(before.losses, after.losses, strict=True))


def compare(config: EvaluateConfig) -> Comparison:
    """Measure ``--load``, and ``--baseline`` before it, both asked with the template and the tokenizer of ``--load``.

    Raises:
        UserError: flags, records or models that cannot be measured.
    """
    assert config.load is not None
    require(config.metrics)
    conversations = list(open_conversations(config.preparation(), config.max_samples)[1]) if config.input else []
    tasks = open_tasks(config) if config.tasks else None
    layout = config.layout()
    loaded = load(config.load, layout)
    encoder = make_asking_encoder(config, loaded.facts)
    items, left_out = make_items(conversations, encoder)
    if conversations and not items:
        raise UserError(f"no record of --input can be written ({', '.join(left_out)})")
    tuned = _measure(loaded, encoder, items, tasks, config)
    models = [tuned]
    if config.baseline is not None:
        process_groups.leave()
        del loaded  # two models need not be held at once
        fresh = config.baseline == FRESH
        before = load(config.load if fresh else config.baseline, layout, fresh=fresh)
        models.insert(0, _measure(before, encoder, items, tasks, config))
    learnt = sum(int((item.sample.labels[1:] >= 0).sum()) for item in items)
    return Comparison(items, left_out, learnt, models)


def _measure(
    loaded: Loaded, encoder: Encoder, items: Sequence[Item], tasks: dict[str, Any] | None, config: EvaluateConfig
) -> Measured:
    measured = Measured(loaded.name, [], {})
    if items:
        _measure_records(measured, loaded, encoder, items, config)
    if tasks is not None:
        measured.figures.update(run_tasks(tasks, loaded, encoder, config))
    return measured


def _measure_records(
    measured: Measured, loaded: Loaded, encoder: Encoder, items: Sequence[Item], config: EvaluateConfig
) -> None:
    pad_id = encoder.tokenizer.pad_id
    losses, learnt, _ = record_losses(loaded, [item.sample for item in items], config.seq_length, pad_id)
    if not learnt.any():
        raise UserError("no record of --input has an answer to measure")
    means = np.divide(losses, learnt, out=np.full(len(losses), np.nan), where=learnt > 0)
    per_token = float(losses.sum() / learnt.sum())
    measured.losses = means.tolist()
    measured.figures = {
        "loss": per_token,
        "perplexity": math.exp(min(per_token, 700.0)),
        "loss_per_record": float(np.nanmean(means)),
    }
    if config.metrics:
        measured.answers = _answers(loaded, encoder, items, config)
        references = [item.reference for item in items]
        for metric in config.metrics:
            measured.figures[metric], measured.scores[metric] = score(metric, measured.answers, references)


def _answers(loaded: Loaded, encoder: Encoder, items: Sequence[Item], config: EvaluateConfig) -> list[str]:
    """Greedy ones."""
    stops, sampling = [*encoder.stop_ids, encoder.tokenizer.pad_id], Sampling(config.max_new_tokens)
    written = answer(loaded, [item.prompt for item in items], stops, sampling, config.micro_batch_size)
    return [encoder.tokenizer.decode(ids) for ids in written]


def write_json(comparison: Comparison, path: Path) -> None:
    """All figures and answers; the file appears whole."""
    text = json.dumps(comparison.as_dict(), ensure_ascii=False, indent=1)
    write_text(path, text + "\n")


def write_page(comparison: Comparison, path: Path) -> None:
    """One HTML file, with nothing to load and no script; text is escaped. It appears whole."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    write_text(path, environment.from_string(_PAGE.read_text(encoding="utf-8")).render(**comparison.as_dict()))


def _of_item(model: Measured, number: int) -> dict[str, Any]:
    loss = model.losses[number]
    found: dict[str, Any] = {"loss": None if math.isnan(loss) else loss}
    if model.answers:
        found["answer"] = model.answers[number]
        found["scores"] = {metric: each[number] for metric, each in model.scores.items()}
    return found
