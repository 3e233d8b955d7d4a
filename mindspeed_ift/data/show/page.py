"""A dataset in, one HTML file out: figures and records, with nothing to load and no script; text is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from mindspeed_ift.config.errors import UserError
from mindspeed_ift.data.show.opening import Part, ShownDataset
from mindspeed_ift.data.show.origins import told
from mindspeed_ift.data.show.survey import Survey, oddities, survey
from mindspeed_ift.data.show.terminal import visible
from mindspeed_ift.data.staging import write_text

_TEMPLATE = Path(__file__).with_name("page.html.j2")
_LONGEST = 5
_ODDEST = 3
_FIRST_TOKENS, _LAST_TOKENS = 1000, 200
_MOST_BARS = 50


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram.

    Attributes:
        place: From 0.
        label: What it counts.
        count: How many.
        height: 0 to 1, of the highest.
    """

    place: int
    label: str
    count: int
    height: float


@dataclass(frozen=True)
class ShownPart:
    """A sample on the page.

    Attributes:
        heading: Where it stands, and how long it is.
        why: Why it is shown.
        tokens: ``(text, id, learnt)`` of each; ``(n, -1, False)`` for n tokens left out.
    """

    heading: str
    why: str
    tokens: list[tuple[Any, int, bool]]


def write_page(dataset: ShownDataset, documents: Sequence[int], path: Path) -> Survey:
    """Write the page.

    Args:
        dataset: It shows.
        documents: Numbers of those to be shown whole.
        path: Of the file; written aside and renamed.

    Returns:
        The figures.

    Raises:
        UserError: It cannot be written there.
    """
    found = survey(dataset)
    text = render(dataset, found, documents)
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"--html {path} cannot be written ({error.strerror}); choose another place") from error
    return found


def render(dataset: ShownDataset, found: Survey, documents: Sequence[int]) -> str:
    """The page as HTML.

    Args:
        dataset: It shows.
        found: Its figures.
        documents: Numbers of those to be shown whole.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    odd = oddities(found)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        name=Path(dataset.prefix).name,
        notice=dataset.notice,
        facts=_facts(dataset, found),
        length_bars=_length_bars(found.length),
        share_bars=_percent_bars(found.share),
        fill_bars=_percent_bars(found.filled / np.maximum(found.row, 1)) if (found.filled < found.row).any() else [],
        ledger=_ledger(dataset.manifest),
        oddities=[(case.name, len(case.samples), case.detail(int(case.samples[0]))) for case in odd],
        documents=[part for number in documents for part in _shown_document(dataset, number)],
        longest=[_shown_sample(dataset, found, int(sample), "") for sample in found.longest(_LONGEST)],
        odd=[
            _shown_sample(dataset, found, int(sample), f"{case.name}: {case.detail(int(sample))}")
            for case in odd
            for sample in case.samples[:_ODDEST]
        ],
    )


def _facts(dataset: ShownDataset, found: Survey) -> list[tuple[str, str]]:
    manifest = dataset.manifest or {}
    tokens, learnt, total = int(found.length.sum()), int(found.learnt.sum()), int(found.row.sum())
    quantiles = np.quantile(found.length, (0.5, 0.95, 0.99)) if len(found.length) else np.zeros(3)
    facts = [
        ("documents", f"{len(found.row):,}"),
        ("samples", f"{len(found.length):,}"),
        ("tokens", f"{tokens:,}"),
        ("learnt", f"{learnt:,} ({learnt / max(tokens, 1):.1%})"),
        ("pads", f"{total - tokens:,} ({(total - tokens) / max(total, 1):.2%})"),
        ("median length", f"{quantiles[0]:,.0f}"),
        ("95 % are no longer than", f"{quantiles[1]:,.0f}"),
        ("99 % are no longer than", f"{quantiles[2]:,.0f}"),
        ("longest", f"{int(found.length.max(initial=0)):,}"),
        ("tokenizer", str(dataset.tokenizer.path)),
    ]
    named = {"prompt_type": "template", "enable_thinking": "thinking", "seq_length": "sequence length"}
    facts += [(label, str(manifest[key])) for key, label in named.items() if manifest.get(key)]
    return [*facts, *(("input", str(one["file"])) for one in manifest.get("input", []))]


def _ledger(manifest: dict[str, Any] | None) -> dict[str, Any] | None:
    """What became of the records, from the manifest."""
    account = (manifest or {}).get("ledger")
    if not account:
        return None
    rows = [
        (kind, reason, tally["count"], tally.get("cut_tokens", 0), ", ".join(tally["first"]))
        for kind, tallies in (("kept, but", account["noted"]), ("dropped", account["dropped"]))
        for reason, tally in sorted(tallies.items(), key=lambda item: -item[1]["count"])
    ]
    return {"read": account["read"], "kept": account["kept"], "rows": rows}


def _length_bars(lengths: np.ndarray) -> list[Bar]:
    """At most 50 bars of an equal, round width."""
    longest = int(lengths.max(initial=1))
    raw = max(longest / _MOST_BARS, 1)
    scale = 10 ** math.floor(math.log10(raw))
    width = next(int(step * scale) for step in (1, 2, 5, 10) if step * scale >= raw)
    counts = np.bincount(lengths // width, minlength=1)
    return _bars([f"{place * width:,} to {(place + 1) * width - 1:,} tokens" for place in range(len(counts))], counts)


def _percent_bars(shares: np.ndarray) -> list[Bar]:
    """Twenty bars of five per cent each, the last with the whole."""
    counts = np.bincount(np.minimum((shares * 20).astype(np.int64), 19), minlength=20)
    return _bars([f"{5 * place} to {5 * place + 5} %" for place in range(20)], counts)


def _bars(labels: list[str], counts: np.ndarray) -> list[Bar]:
    highest = max(int(counts.max(initial=0)), 1)
    return [
        Bar(place, label, int(count), int(count) / highest) for place, (label, count) in enumerate(zip(labels, counts))
    ]


def _shown_document(dataset: ShownDataset, number: int) -> list[ShownPart]:
    parts = list(dataset[number].parts())
    return [_shown_part(dataset, number, part, parts, "") for part in parts]


def _shown_sample(dataset: ShownDataset, found: Survey, sample: int, why: str) -> ShownPart:
    number, place = int(found.document[sample]), int(found.place[sample])
    parts = list(dataset[number].parts())
    part = next(part for part in parts if part.number == place)
    return _shown_part(dataset, number, part, parts, why)


def _shown_part(dataset: ShownDataset, number: int, part: Part, parts: list[Part], why: str) -> ShownPart:
    if not part.number:
        return ShownPart(f"document {number}: {len(part.input_ids):,} pads", why, [])
    tokens = f"{len(part.input_ids):,} tokens, {int(part.learnt.sum()):,} learnt"
    heading = f"document {number}, {dataset.name(part)}: {tokens}"
    origin = told(dataset.origins(number), part.number, max(one.number for one in parts))
    heading += f", from {origin}" if origin else ""
    left_out = len(part.input_ids) - _FIRST_TOKENS - _LAST_TOKENS
    if left_out <= 0:
        return ShownPart(heading, why, _tokens(dataset, part, slice(None)))
    first, last = _tokens(dataset, part, slice(_FIRST_TOKENS)), _tokens(dataset, part, slice(-_LAST_TOKENS, None))
    return ShownPart(heading, why, [*first, (f"{left_out:,}", -1, False), *last])


def _tokens(dataset: ShownDataset, part: Part, which: slice) -> list[tuple[Any, int, bool]]:
    ids = part.input_ids[which]
    pieces = dataset.pieces(ids)
    return [(visible(piece), int(token), bool(learnt)) for piece, token, learnt in zip(pieces, ids, part.learnt[which])]
